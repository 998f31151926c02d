r"""Measures what ``config.<stream>.jitter_first=False`` changes against the released order, and what it saves.

  python scripts/measure_input.py --output=jitter.json
  python scripts/measure_input.py --case=camvid --case=camvid_self_distillation --data_dir=DATA --dataset=camvid \
      --split=train_day

Released, colours change on the whole stored image; with False, on the pixels that resizing and cropping leave. Both
orders read the same images with the same draws, with the released strengths; their pixels are compared in grey levels
of 0 to 255, and the CPU time of an image is that of the whole stream, decoding included. Without --data_dir images are
generated with detail of every size, and stored at each case's size.
"""

from __future__ import annotations

import time

import PIL
from absl import flags

from fada_jax import cli
from fada_jax.errors import UserError
from fada_jax.reporting import results
from fada_jax.scripts.benchmarks import jitter


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    if bool(options.data_dir) != bool(options.dataset and options.split):
        raise UserError("--data_dir, --dataset and --split belong together")
    images_of = {"dataset": options.dataset or "gta5", "split": options.split or "train", "city": options.city}
    results.check(options.output, "--output")
    cases = jitter.measure_cases(options.case, options.data_dir, images_of, options.draws, options.seed)
    print(jitter.table(cases))
    if options.output:
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "pillow": PIL.__version__,
            "images": "/".join(filter(None, (options.dataset, options.city, options.split))) or "generated",
            "seed": options.seed,
        }
        results.write(options.output, {**facts, "cases": cases})


def define_flags() -> None:
    flags.DEFINE_multi_enum("case", list(jitter.CASES), list(jitter.CASES), "Sizes and geometry; may be repeated.")
    flags.DEFINE_integer("draws", 24, "Images of each case.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)
    flags.DEFINE_string("data_dir", "", "Converted data; empty: generated images.")
    flags.DEFINE_string("dataset", "", "Data set under --data_dir.")
    flags.DEFINE_string("split", "", "Its split.")
    flags.DEFINE_string("city", "", "Cross-City only.")
    flags.DEFINE_string("output", "", "JSON file to write.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
