"""Brings PyTorch weights here and takes ours back, accounting for every tensor and for every array of ours.

  python -m fada_jax.convert_weights import --input=resnet101.pth --output=W
  python -m fada_jax.convert_weights import --input=vgg16_caffe.pth --output=W --format=caffe_vgg
  python -m fada_jax.convert_weights import --input=g2c_adv.pth --output=W --format=fada
  python -m fada_jax.convert_weights import --input=GTA5_150000.pth --output=W --format=adaptsegnet
  python -m fada_jax.convert_weights export --workdir=W --output=model.pth
  python -m fada_jax.convert_weights export --workdir=W --output=model.safetensors

Import makes a workdir that --config.init_from, evaluate and predict take. Class set, backbone and batch norm are read
off the file; a .safetensors file that export wrote says all that itself, the classes of own data included. With
--config naming a stage, `fada_jax.train` with that config and --workdir goes on at the file's iteration, with its
optimizer states; a file of weights alone is at step 0. What a file lacks starts as in a fresh run of the config, and
the output says so; it also names the sections that stay in the file.

Files of AdaptSegNet, CLAN, ADVENT and their like hold G alone; --discriminator and --auxiliary_discriminator (D2 and D1
of AdaptSegNet) name those beside it, both ways. --format=adaptsegnet says that two branches of a head take part, advent
that all do.

Export to .pth writes the layout of the released PyTorch code, or AdaptSegNet's of the Caffe variant; .safetensors holds
the same tensors flat, or our own names where the released layout cannot hold the model (group norm, the Caffe variant,
several classifiers). A file that no export made is never replaced, and import wants an empty or a new folder. For an
artifact that runs without PyTorch and without this package see fada_jax.export.
"""

from __future__ import annotations

import importlib

from absl import flags

from fada_jax import cli
from fada_jax import config as schema
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.interop import exporting, importing, reading
from fada_jax.interop.lineage import NONE, DiscriminatorFiles


def released_config(model: reading.ReleasedModel) -> Config:
    """The config in ``configs/`` of a model of the released code."""
    task = importlib.import_module(f"fada_jax.configs.{model.task}")
    config = task.get_config(f"stage={model.stage},backbone={model.backbone}")
    config.model.update({"norm": model.norm, **model.network})
    return schema.read(config)


def import_file(
    path: str,
    output: str,
    *,
    format: str = "",
    config: Config | None = None,
    discriminators: DiscriminatorFiles = NONE,
) -> str:
    """``importing.import_file`` with the released configs at hand."""
    return importing.import_file(
        path, output, released_config, format=format, config=config, discriminators=discriminators
    )


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    action = arguments[0] if len(arguments) == 1 else ""
    discriminators = DiscriminatorFiles(options.discriminator, options.auxiliary_discriminator)
    if action == "import":
        if not options.input or not options.output:
            raise UserError("import needs --input=FILE and --output=WORKDIR")
        config = schema.read(cli.config()[0]) if options["config"].value is not None else None
        given = {"format": options.format, "config": config, "discriminators": discriminators}
        print(import_file(options.input, options.output, **given))
    elif action == "export":
        if not options.workdir or not options.output:
            raise UserError("export needs --workdir=W and --output=FILE.pth or FILE.safetensors")
        print(exporting.export_file(options.workdir, options.output, options.checkpoint, discriminators))
    else:
        raise UserError(f"say what to do: import or export (got {' '.join(arguments) or 'nothing'})")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("input", "", "Import: .pth or .safetensors file.")
    flags.DEFINE_string("output", "", "Import: workdir to make. Export: .pth or .safetensors file.")
    flags.DEFINE_enum("format", "", ["", *reading.FORMATS], "Import: layout of the file; default: read off it.")
    flags.DEFINE_string("discriminator", "", "File of the discriminator alone, as AdaptSegNet and its like have it.")
    flags.DEFINE_string("auxiliary_discriminator", "", "Likewise of the one for the auxiliary classifier.")
    flags.DEFINE_string("workdir", "", "Export: folder of a stage or of a recipe.")
    flags.DEFINE_string("checkpoint", "last", "Export: last or a step.")
    cli.run(main)
