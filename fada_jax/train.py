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

from fada_jax import cli, endings
from fada_jax import config as schema
from fada_jax.errors import UserError
from fada_jax.stages import run
from fada_jax.stages.dry_run import dry_run
from fada_jax.stages.inspection import Inspection, parse_profile


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    config, options = schema.read(cli.config()[0]), flags.FLAGS
    inspection = Inspection(parse_profile(options.profile), options.dump_hlo)
    cli.join_processes()
    if options.dry_run:
        dry_run(config)
        return
    if not options.workdir:
        raise UserError("--workdir is missing: the folder that receives the checkpoints")
    run.train(config, options.workdir, inspection=inspection, began=endings.BEGAN)
    print(f"done: {options.workdir}")


if __name__ == "__main__":
    cli.define_config()
    cli.define_processes()
    flags.DEFINE_string("workdir", "", "Folder of this stage: checkpoints, metrics, TensorBoard events.")
    flags.DEFINE_string("profile", "", "START:STOP: an XLA trace of the steps after START up to STOP, in profile/.")
    flags.DEFINE_bool("dump_hlo", False, "Write the optimised HLO of the step to hlo/step.txt.")
    flags.DEFINE_bool("dry_run", False, "Compile the step from shapes, print what it takes, train nothing.")
    cli.define_cache()
    cli.run(main)
