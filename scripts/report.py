"""One self-contained HTML page about one or several finished recipes: no request leaves it.

  python scripts/report.py --workdir=W --output=report.html
  python scripts/report.py --workdir=W/seed0 W/seed1 --output=report.html     # side by side

The page has the table of results, the IoU of each class beside the paper's rows, training curves, predictions before
and after adaptation under a slider, confusion matrices, the Class Center Distance where scripts/ccd.py has measured it,
and the config. It is made of the files that scripts/run_recipe.py left; no model is loaded. An earlier page is
replaced, any other file at --output is not.
"""

from __future__ import annotations

from absl import flags

from fada_jax import cli, files
from fada_jax.errors import UserError
from fada_jax.reporting.page import is_page, page


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    workdirs = [files.place(path) for path in (options.workdir, *arguments)]
    if len({path.absolute() for path in workdirs}) < len(workdirs):
        raise UserError("--workdir: each folder only once")
    files.check_output(options.output, "--output", ours=is_page)
    files.write_text(options.output, page(workdirs), ours=is_page)
    print(f"written: {options.output}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a recipe; more may follow.")
    flags.DEFINE_string("output", None, "HTML file to write.")
    flags.mark_flags_as_required(["workdir", "output"])
    cli.run(main)
