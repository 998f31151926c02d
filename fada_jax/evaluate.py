"""Scores a trained stage (or the last stage of a recipe's workdir) at the label's own size.

  python -m fada_jax.evaluate --workdir=W
  python -m fada_jax.evaluate --workdir=W/adversarial --checkpoint=all --multi_scale --output=scores.json

Class set, preprocessing, network and input size come from the checkpoint. --checkpoint=all also writes a CSV beside
the JSON, one row a checkpoint; --checkpoint=best scores all of them and reports the best, which on labelled target
images is model selection by the very labels that are reported: say so where you publish it.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fada_jax import checkpoints, cli, colour_matching, files, handovers, inference, metrics, sharding
from fada_jax.errors import UserError
from fada_jax.models import ModelSpec, Segmenter, compute_dtype
from fada_jax.preprocessing import Preprocessing

# Stages of a recipe's workdir, the most adapted last.
STAGE_FOLDERS = ("source", "adversarial", "self_distillation")


def stage_workdir(workdir: str | Path) -> Path:
    """``workdir`` itself when it holds checkpoints, otherwise its last finished stage.

    Raises:
      UserError: neither.
    """
    workdir = Path(workdir)
    for folder in (workdir, *(workdir / name for name in reversed(STAGE_FOLDERS))):
        if checkpoints.available_steps(folder):
            return folder
    raise UserError(f"no checkpoint in {checkpoints.directory(workdir)} or in a stage folder of {workdir}")


@functools.lru_cache(16)
def compiled_step(
    spec: ModelSpec, preprocessing: Preprocessing, scales: tuple[float, ...], flip: bool, mesh: jax.sharding.Mesh
) -> Callable[..., Any]:
    """``inference.evaluation_step`` of a network on a mesh, jitted: scored again, it is not compiled again."""
    step = functools.partial(
        inference.evaluation_step,
        apply_fn=Segmenter(spec).apply,
        preprocessing=preprocessing,
        scales=scales,
        flip=flip,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def evaluate(
    model: checkpoints.Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    scales: tuple[float, ...] = inference.SINGLE_SCALE,
    flip: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    variables: Any = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Scores a model on an iterator of batches; nothing leaves the device until the end.

    Args:
      model: of ``checkpoints.load_model``.
      batches: ``image`` uint8 [N, H, W, 3], ``label`` uint8 [N, h, w] in the model's class set, ``mask`` bool [N];
        N a multiple of the devices.
      scales, flip: see ``inference.class_probabilities``.
      mesh: devices that share a batch; None: all.
      variables: weights on the mesh that take the place of the model's.
      progress: called with the number of images that this process has handed over.

    Returns:
      scores of ``metrics.scores`` with ``confusion`` (nested list), ``num_images``, ``scored_at`` (label sizes).
    """
    mesh = mesh or sharding.make_mesh()
    class_set = model.class_set
    step = compiled_step(model.spec, model.preprocessing, scales, flip, mesh)
    if variables is None:
        variables = jax.device_put(model.variables, sharding.replicated(mesh))
    zero = (metrics.empty_confusion(class_set.num_classes), jnp.zeros((), jnp.int32))
    count = jax.device_put(zero, sharding.replicated(mesh))
    done, sizes = 0, set()
    for batch in batches:
        if "label" not in batch:
            raise UserError("this split has no labels to score against: choose another with --split")
        sizes.add(f"{batch['label'].shape[2]}x{batch['label'].shape[1]}")
        handovers.note(
            "evaluation",
            dataset=model.config["eval"]["dataset"],
            input=handovers.size(batch["image"].shape[1:3]),
            scales=scales,
            flip=flip,
            scored=handovers.size(batch["label"].shape[1:3]),
        )
        count = step(count, variables, sharding.put_batch({k: batch[k] for k in ("image", "label", "mask")}, mesh))
        done += int(np.sum(batch["mask"]))
        progress(done)
    confusion, num_images = count
    if not int(num_images):
        raise UserError("no image to score in this split")
    confusion = metrics.confusion_matrix(confusion)
    return {
        **metrics.scores(confusion, class_set),
        "num_images": int(num_images),
        "class_set": class_set.name,
        "scored_at": ", ".join(sorted(sizes)),
        "confusion": confusion.tolist(),
    }


def evaluate_stage(
    workdir: str | Path,
    *,
    checkpoint: str = "last",
    multi_scale: bool = False,
    data_dir: str = "",
    split: str = "",
    dataset: str = "",
    colour: str = "",
    dtype: str = "auto",
    show_progress: bool = False,
) -> dict[str, Any]:
    """Scores one checkpoint of a stage on the target it was configured for.

    Args:
      workdir: of a stage.
      checkpoint: 'last' or a step.
      multi_scale: the config's scales, each flipped, instead of the plain image.
      data_dir, split, dataset: replace the config's.
      colour: '' or a mode of ``colour_matching``: recolours the images to the source's statistics first.
      dtype: compute type, see ``models.convolution.inference_dtype``.
      show_progress: a line on stderr.

    Returns:
      the result of ``evaluate`` with ``multi_scale``, ``checkpoint_step``, ``dataset``, ``split``.
    """
    from fada_jax.input_pipeline import streams
    from fada_jax.train import make_stream

    model = checkpoints.in_dtype(checkpoints.load_model(workdir, checkpoint), dtype)
    if not model.class_set:
        raise UserError(f"{workdir}: these weights have no classifier to evaluate")
    config = ConfigDict(model.config)
    data_dir = data_dir or config.data_dir
    if dataset:
        config.eval.dataset = dataset
    if split:
        config.eval.split = split

    def batches(stream: Any, **options: int) -> Iterable[Mapping[str, Any]]:
        damaged = config.get("damaged_records", "fail")  # Checkpoints of earlier versions lack the key.
        return streams.eval_batches(data_dir, stream, class_set=model.class_set, damaged_records=damaged, **options)

    stream = make_stream(config.eval, augment=False)
    total = streams.num_examples(data_dir, stream)
    images = iter(
        batches(
            stream,
            batch_size=config.eval_batch_size * len(jax.devices()),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )
    if colour:
        # Every process looks at the same images, whatever devices there are.
        source, target = (
            colour_matching.colour_statistics(
                batches(
                    make_stream(config[name], labels=False, augment=False, role="colours"),
                    batch_size=1,
                    limit=colour_matching.IMAGES,
                )
            )
            for name in ("source", "target")
        )
        images = map(colour_matching.matcher(colour, source, target), images)
    began = time.perf_counter()

    def progress(done: int) -> None:
        if show_progress and not jax.process_index():
            done = min(done * jax.process_count(), total)
            rate = done / (time.perf_counter() - began)
            print(f"\r{done}/{total} images, {rate:.1f} images/s", end="", file=sys.stderr, flush=True)

    scales = tuple(config.multi_scale) if multi_scale else inference.SINGLE_SCALE
    result = evaluate(model, images, scales=scales, flip=multi_scale, progress=progress)
    if show_progress:
        print(file=sys.stderr)
    return {
        **result,
        "multi_scale": multi_scale,
        "checkpoint_step": model.step,
        "dtype": compute_dtype(model.spec.dtype),
        "dataset": config.eval.dataset,
        "split": config.eval.split,
    }


def table(result: Mapping[str, Any]) -> str:
    """Scores as lines for the terminal."""
    lines = [f"  {name:<14}{'-' if iou is None else f'{iou:6.2f}'}" for name, iou in result["iou"].items()]
    lines.append(f"  {'mIoU':<14}{result['miou']:6.2f}  over {len(result['iou'])} classes ({result['class_set']})")
    if result.get("miou_13") is not None:
        lines.append(f"  {'mIoU*':<14}{result['miou_13']:6.2f}  over 13 classes")
    lines.append(f"  {'accuracy':<14}{result['accuracy']:6.2f}")
    how = "multi-scale + flip" if result["multi_scale"] else "single scale"
    lines.append(
        f"  step {result['checkpoint_step']}, {result['num_images']} images of {result['dataset']}/{result['split']}, "
        f"{how}, {result['dtype']}, scored at the label's size {result['scored_at']}"
    )
    return "\n".join(lines)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with files.replacing(path) as partial:
        partial.write_text(text)


def to_csv(results: Iterable[Mapping[str, Any]]) -> str:
    """One row a checkpoint: step, mIoU, mIoU*, accuracy, IoU of each class."""
    buffer = io.StringIO()
    rows = [
        {"step": r["checkpoint_step"], "miou": r["miou"], "miou_13": r.get("miou_13"), "accuracy": r["accuracy"]}
        | r["iou"]
        for r in results
    ]
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    cli.join_processes()
    workdir = stage_workdir(options.workdir)
    every = options.checkpoint in ("all", "best")
    wanted = [str(step) for step in checkpoints.available_steps(workdir)] if every else [options.checkpoint]
    results = []
    for checkpoint in wanted:
        results.append(
            evaluate_stage(
                workdir,
                checkpoint=checkpoint,
                multi_scale=options.multi_scale,
                data_dir=options.data_dir,
                dataset=options.dataset,
                split=options.split,
                colour=options.colour_matching,
                dtype=options.dtype,
                show_progress=True,
            )
        )
        if options.checkpoint == "all":
            print(f"step {results[-1]['checkpoint_step']:>7}  mIoU {results[-1]['miou']:6.2f}")
    chosen = results[-1] if options.checkpoint != "best" else max(results, key=lambda r: r["miou"])
    print(f"{workdir}\n{table(chosen)}")
    if jax.process_index():
        return
    output = options.output or str(workdir / "evaluation.json")
    write_text(output, json.dumps(chosen, indent=2) + "\n")
    print(f"written: {output}")
    if every:
        csv_path = Path(output).with_suffix(".csv")
        write_text(csv_path, to_csv(results))
        print(f"written: {csv_path}")


if __name__ == "__main__":
    cli.define_processes()
    flags.DEFINE_string("workdir", None, "Folder of a stage or of a recipe.")
    flags.DEFINE_string("checkpoint", "last", "last, best, all or a step.")
    flags.DEFINE_bool("multi_scale", False, "Average over the config's scales, each also flipped.")
    flags.DEFINE_string("output", "", "JSON file to write; default: evaluation.json in the stage's folder.")
    flags.DEFINE_string("data_dir", "", "TFRecords; default: the config's data_dir.")
    flags.DEFINE_string("dataset", "", "Another data set of the same classes, for instance the source's.")
    flags.DEFINE_string("split", "", "Another split.")
    cli.define_dtype()
    flags.DEFINE_enum("colour_matching", "", ["", *colour_matching.MODES], "Recolour the images to the source first.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
