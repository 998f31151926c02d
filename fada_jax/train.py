r"""Trains one stage: source, adaptation or self_distillation. The same command resumes where it stopped.

  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=source --workdir=W/source
  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=adaptation --workdir=W/adaptation \
      --config.init_from=W/source
  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=self_distillation \
      --workdir=W/self_distillation --config.teacher_from=W/adaptation

--dry_run compiles the step from the config's shapes, without data, and prints parameter counts, shapes, the sharding of
every array that is split, and the FLOPs and memory of a step.
"""

from __future__ import annotations

from absl import flags

from fada_jax import cli
from fada_jax import config as schema
from fada_jax.errors import UserError
from fada_jax.stages import run
from fada_jax.stages.dry_run import dry_run


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    config = schema.read(cli.config()[0])
    cli.join_processes()
    if flags.FLAGS.dry_run:
        dry_run(config)
        return
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: the folder that receives the checkpoints")
    run.train(config, flags.FLAGS.workdir)
    print(f"done: {flags.FLAGS.workdir}")


if __name__ == "__main__":
    cli.define_config()
    cli.define_processes()
    flags.DEFINE_string("workdir", "", "Folder of this stage: checkpoints, metrics, TensorBoard events.")
    flags.DEFINE_bool("dry_run", False, "Compile the step from shapes, print what it takes, train nothing.")
    cli.define_cache()
    cli.run(main)
