"""Batches of a stage: its streams, their shapes, and the iterator that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import distributed, handovers
from fada_jax.classes import IGNORE
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.input_pipeline import streams as pipeline
from fada_jax.input_pipeline.stream import Stream
from fada_jax.input_pipeline.stream_labels import blank_estimates


def streams(config: Config, pseudo_labels: str = "") -> dict[str, Stream]:
    """Streams of a stage's batch by name; each has the share ``stream_batch_size`` of it."""
    kind, labelled = config.kind, getattr(config, config.kind.images)
    of_teacher = pseudo_labels if kind.pseudo_labels == kind.images else ""
    result = {"source": labelled.stream(labels=not kind.translates, pseudo_labels=of_teacher)}
    if "target" in config.training_method.streams:
        taught = kind.pseudo_labels == "target" and kind.labels == "classes"
        own = pseudo_labels if kind.pseudo_labels == "target" else ""
        of_classes, landmarks = (own, "") if taught else ("", own)
        result["target"] = config.target.stream(
            labels=taught, pseudo_labels=of_classes, landmarks=landmarks, role="target"
        )
    return result


def stream_batch_size(config: Config) -> int:
    """Images of each stream in a global batch."""
    return config.batch_size // config.kind.parts


def batch_shapes(config: Config) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of a stage's batch, without data."""
    result, count = {}, stream_batch_size(config)
    for name, stream in streams(config).items():
        width, height = stream.image_size
        result[name] = {"image": jax.ShapeDtypeStruct((count, height, width, 3), jnp.uint8)}
        if stream.labels or stream.pseudo_labels:
            result[name]["label"] = jax.ShapeDtypeStruct((count, height, width), jnp.uint8)
        if name == config.kind.pseudo_labels and config.kind.labels == "landmarks":
            result[name]["landmark"] = jax.ShapeDtypeStruct((count, height, width), jnp.uint8)
            for key, x in blank_estimates(config.classes.num_classes).items():
                result[name][key] = jax.ShapeDtypeStruct((count, *x.shape), x.dtype)
    return result


def check_streams(config: Config, pseudo_labels: str, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Refuses streams of a stage that cannot be read or that the mesh cannot split.

    Returns:
      images of each stream by name.

    Raises:
      UserError: see above.
    """
    images, size = {}, stream_batch_size(config)
    for name, stream in streams(config, pseudo_labels).items():
        distributed.check_batch("config.batch_size (per stream)", size, mesh, config.accumulate_steps)
        distributed.check_height(f"{stream.dataset}/{stream.split}", stream.image_size[1], mesh)
        pipeline.check(config.data_dir, stream, config.classes, config.class_map)
        images[name] = pipeline.num_examples(config.data_dir, stream)
    if config.eval_every:
        pipeline.check(config.data_dir, config.eval.stream(augment=False), config.classes, config.class_map)
    return images


def _order(config: Config) -> dict[str, Any]:
    """What decides the order of a stage's images, as ``input_pipeline.streams`` takes it."""
    return {"class_set": config.classes, "batch_size": stream_batch_size(config), "seed": config.seed}


def read_batches(config: Config, pseudo_labels: str, start: int, mesh: jax.sharding.Mesh) -> Iterator[dict[str, Any]]:
    """This process's share of the stage's batches from step ``start`` on."""
    reader, readers = distributed.readers(mesh)
    iterators = {
        name: pipeline.train_batches(
            config.data_dir,
            stream,
            **_order(config),
            start_step=start,
            process_index=reader,
            process_count=readers,
            damaged_records=config.damaged_records,
        )
        for name, stream in streams(config, pseudo_labels).items()
    }
    for parts in zip(*iterators.values(), strict=False):
        batch = dict(zip(iterators, parts, strict=True))
        for name, part in batch.items():
            maps = {key: handovers.size(x.shape[1:3]) for key, x in part.items() if x.ndim > 2}
            handovers.note("batch", stream=name, **maps)
        yield batch


def batch_names(config: Config, pseudo_labels: str, step: int) -> dict[str, list[str]]:
    """Names of the images of each stream in the global batch of a step, from 0."""
    return {
        name: pipeline.batch_names(config.data_dir, stream, **_order(config), step=step)
        for name, stream in streams(config, pseudo_labels).items()
    }


def checked_batches(
    config: Config, batches: Iterable[Mapping[str, Any]], readers: int = 1
) -> Iterator[Mapping[str, Any]]:
    """A caller's batches, each refused where a step would train on something else than it says.

    Args:
      config: of the stage; the height and width of its streams need not be those of the batches.
      batches: this process's shares, as ``fada_jax.train_stage`` takes them.
      readers: shares of a batch, of ``distributed.readers``.

    Raises:
      UserError: a stream that is missing, another type, number or size of images, or a label that is no class.
    """
    expected, class_set = batch_shapes(config), config.classes
    sizes: dict[str, tuple[int, ...]] = {}
    for number, batch in enumerate(batches):
        for stream, shapes in expected.items():
            for key, wanted in shapes.items():
                name = f"batch {number}: {stream}/{key}"
                if key not in batch.get(stream, {}):
                    raise UserError(f"{name} is missing")
                array = np.asarray(batch[stream][key])
                shape = (wanted.shape[0] // readers, *wanted.shape[1:])
                if len(shape) > 2:
                    shape = (shape[0], *sizes.setdefault(stream, array.shape[1:3]), *shape[3:])
                if (array.dtype, array.shape) != (wanted.dtype, shape):
                    given = f"{array.dtype}{list(array.shape)}"
                    raise UserError(f"{name} is {given}, must be {wanted.dtype}{list(shape)}")
                if key in ("label", "landmark_class") and (classes := set(np.unique(array).tolist()) - {IGNORE}):
                    if max(classes) >= class_set.num_classes:
                        raise UserError(
                            f"{name} holds {max(classes)}, which is no class of {class_set.name} "
                            f"({class_set.num_classes} classes) and not {IGNORE} (ignored)"
                        )
        yield batch
