"""Writes an adapted model as an artifact that runs without this package: StableHLO, weights, classes and a model card.

  python -m fada_jax.export --workdir=W --output=DIR
  python -m fada_jax.export --workdir=W/adaptation --checkpoint=900 --output=DIR --tensorflow

DIR receives probabilities.stablehlo, multi_scale.stablehlo and features.stablehlo (functions of the weights and of
uint8 RGB images [N, H, W, 3], any N, H and W, with preprocessing and resizing inside), weights.npz, model.json
(classes, colours, preprocessing), README.md, the model card with the four lines that run it, and SHA256SUMS, which
`sha256sum -c` reads and loading compares. A folder that is there already is refused. --tensorflow adds a SavedModel
made with jax2tf. For PyTorch see fada_jax.convert_weights.
"""

from __future__ import annotations

from absl import flags

from fada_jax import cli, files, folders
from fada_jax.errors import UserError
from fada_jax.interop import stablehlo
from fada_jax.stages.workdirs import stage_workdir
from fada_jax.training import checkpoints


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    model = checkpoints.load_model(stage_workdir(options.workdir), options.checkpoint)
    output = stablehlo.export_model(
        model, files.place(options.output), tensorflow=options.tensorflow, dtype=options.dtype
    )
    for path in sorted(folders.published(output).iterdir()):
        print(f"  {path.name}")
    print(f"step {model.step} of {options.workdir}, {model.classes.num_classes} classes, written to {output}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a stage or of a recipe.")
    flags.DEFINE_string("output", None, "Folder to make.")
    flags.DEFINE_string("checkpoint", "last", "last or a step.")
    cli.define_dtype()
    flags.DEFINE_bool("tensorflow", False, "Also write a TensorFlow SavedModel.")
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
