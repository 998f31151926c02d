"""Runs one ablation over seeds and writes its table, with mean and spread, beside the paper's numbers.

  python scripts/ablate.py --config=configs/gta5_to_cityscapes.py:size=miniature --config.data_dir=DATA --workdir=W
  python scripts/ablate.py --config=... --workdir=W --table=clipping --seeds=0,1,2,3,4

Tables: components (the paper's table 4, with global alignment and the honest baselines beside it), knowledge (table 5),
clipping (table 6), lambda, temperature. W receives a folder a seed, with one a stage or variant, and TABLE.md and
TABLE.csv. Variants share the source stage of their seed. The same command goes on where it stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import run_recipe
from absl import flags

from fada_jax import cli, evaluate, settings, train
from fada_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: an adversarial stage, by its config arguments and overrides, and the paper's mIoU where it has one."""

    method: str = "fada"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _paper(gta5: float, synthia: float | None = None) -> dict[str, float]:
    return {"gta5_to_cityscapes": gta5} | ({} if synthia is None else {"synthia_to_cityscapes": synthia})


# Rows of a recipe, by their name in results.json; the paper's numbers of table 4.
_RECIPE_PAPER = {
    "source_only": 36.8,
    "adapted": 46.9,
    "self_distilled": 49.2,
    "self_distilled_multi_scale": 50.1,
}
_BINARY = {"binary (global alignment)": Variant("binary", paper=_paper(39.4, 35.4))}
TABLES: Mapping[str, Mapping[str, Variant]] = {
    "components": _BINARY,
    "knowledge": {
        **_BINARY,
        "hard labels": Variant("hard", paper=_paper(45.7, 40.8)),
        "soft labels": Variant(paper=_paper(46.9, 41.5)),
    },
    "clipping": {
        f"clip {clip}": Variant(overrides={"knowledge.clip": clip}, paper=_paper(paper))
        for clip, paper in ((0.7, 46.2), (0.8, 46.3), (0.9, 46.9), (1.0, 45.7))
    },
    "lambda": {
        f"lambda_adv times {factor:g}": Variant(overrides={"lambda_adv": factor}) for factor in (0.1, 0.3, 1.0, 3.0)
    },
    "temperature": {f"T = {t}": Variant(overrides={"knowledge.temperature": t}) for t in (1.0, 1.8, 3.0)},
}


def run_variant(name: str, variant: Variant, path: str, overrides: dict[str, Any], workdir: Path) -> float:
    """mIoU in percent of one variant, trained from the source stage in ``workdir`` where it is not yet."""
    arguments = {"stage": "adversarial", "method": variant.method}
    config = run_recipe.stage_config(path, overrides, **arguments)
    changes = dict(variant.overrides)
    if "lambda_adv" in changes:
        changes["lambda_adv"] *= config.lambda_adv
    config.update_from_flattened_dict(changes | {"init_from": str(workdir / "source")})
    settings.check(config)
    folder = workdir / "".join(c if c.isalnum() or c == "." else "_" for c in name)
    train.train(config, folder)
    return evaluate.evaluate_stage(folder, data_dir=config.data_dir)["miou"]


def run_seed(table: str, path: str, overrides: dict[str, Any], workdir: Path) -> dict[str, float]:
    """mIoU in percent of every row for one seed."""
    if table == "components":
        rows, _ = run_recipe.run(path, overrides, workdir)
        scores = {row["name"]: row["miou"] for row in rows}
    else:
        config = run_recipe.stage_config(path, overrides, stage="source")
        train.train(config, workdir / "source")
        scores = {"source_only": evaluate.evaluate_stage(workdir / "source", data_dir=config.data_dir)["miou"]}
    for name, variant in TABLES[table].items():
        scores[name] = run_variant(name, variant, path, overrides, workdir)
    return scores


def markdown(table: str, task: str, seeds: Sequence[int], scores: Sequence[Mapping[str, float]]) -> str:
    """Rows with mean and standard deviation over seeds; gains over source only are paired by seed."""
    lines = [
        f"| {task}, {table} | mIoU | gain over source only | {' | '.join(f'seed {s}' for s in seeds)} | paper |",
        "| --- |" + " ---: |" * (len(seeds) + 3),
    ]
    for name in scores[0]:
        values = np.array([s[name] for s in scores])
        gains = values - [s["source_only"] for s in scores]
        paper = {**_paper(_RECIPE_PAPER[name])} if name in _RECIPE_PAPER else {}
        paper = TABLES[table][name].paper if name in TABLES[table] else paper
        cells = [run_recipe.LABELS.get(name, name), _spread(values, ""), _spread(gains, "+")]
        cells += [f"{v:.1f}" for v in values] + [f"{paper[task]:.1f}" if task in paper else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: np.ndarray, sign: str) -> str:
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.1f}{spread}"


def to_csv(seeds: Sequence[int], scores: Sequence[Mapping[str, float]]) -> str:
    """One row a seed, one column a row of the table."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["seed", *scores[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"seed": seed, **row} for seed, row in zip(seeds, scores, strict=True))
    return buffer.getvalue()


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    config, path, overrides = cli.config()
    if not all(seed.isdigit() for seed in options.seeds) or len(set(options.seeds)) != len(options.seeds):
        raise UserError(f"--seeds={','.join(options.seeds)}: different whole numbers, separated by commas")
    workdir, seeds = Path(options.workdir).absolute(), [int(seed) for seed in options.seeds]
    scores = [run_seed(options.table, path, {**overrides, "seed": seed}, workdir / f"seed{seed}") for seed in seeds]
    text = markdown(options.table, config.task, seeds, scores)
    evaluate.write_text(workdir / f"{options.table}.md", text)
    evaluate.write_text(workdir / f"{options.table}.csv", to_csv(seeds, scores))
    print(f"\n{text}\nwritten: {workdir / options.table}.md and .csv")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the ablation.")
    flags.DEFINE_enum("table", "components", list(TABLES), "Which table.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, separated by commas.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
