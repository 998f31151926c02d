"""The raw layouts of the data sets: the paths, the size and the seed of every image."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

DATASETS = ("gta5", "synthia", "cityscapes", "crosscity")
CITIES = {
    "train": ("aachen", "bremen", "cologne", "hamburg"),
    "val": ("frankfurt", "lindau", "munster"),
    "test": ("berlin", "bonn"),
}
CROSSCITY = ("Rome", "Rio", "Tokyo", "Taipei")


class Task(NamedTuple):
    """One image to make; everything that its bytes depend on."""

    seed: tuple[int, int, int, int]
    dataset: str
    domain: str
    shift: float
    size: tuple[int, int]
    image: str  # Paths below the output folder.
    label: str  # Empty: the image has none.


@dataclasses.dataclass(frozen=True)
class Counts:
    """Images to make per split."""

    source: int = 800  # gta5, and synthia.
    target: int = 500  # Training images of cityscapes.
    val: int = 150
    test: int = 20
    city_train: int = 200
    city_test: int = 100


class _Split(NamedTuple):
    """One split: its number among those of its dataset, and the image and label path of every image."""

    dataset: str
    domain: str
    number: int
    rows: int  # Height where the target's is 64.
    paths: list[tuple[str, str]]


def _splits(counts: Counts) -> Iterator[_Split]:
    names = [f"{i + 1:05d}.png" for i in range(counts.source)]
    yield _Split("gta5", "gta5", 0, 72, [(f"gta5/images/{name}", f"gta5/labels/{name}") for name in names])
    root, names = "synthia/RAND_CITYSCAPES", [f"{i:07d}.png" for i in range(counts.source)]
    yield _Split("synthia", "synthia", 0, 76, [(f"{root}/RGB/{name}", f"{root}/GT/LABELS/{name}") for name in names])
    for number, (split, count) in enumerate(zip(CITIES, (counts.target, counts.val, counts.test), strict=True)):
        turns = [(CITIES[split][i % len(CITIES[split])], i // len(CITIES[split])) for i in range(count)]
        stems = [f"{split}/{city}/{city}_{turn:06d}_000019" for city, turn in turns]
        paths = [
            (f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png", f"cityscapes/gtFine/{stem}_gtFine_labelIds.png")
            for stem in stems
        ]
        yield _Split("cityscapes", "cityscapes", number, 64, paths)
    for number, (city, split) in enumerate(itertools.product(CROSSCITY, ("Train", "Test"))):
        count = counts.city_train if split == "Train" else counts.city_test
        stems = [f"pano_{i:05d}_{i % 4}_{i % 2 * 180}" for i in range(count)]
        labels = f"crosscity/{city}/Labels/Test" if split == "Test" else ""
        paths = [
            (f"crosscity/{city}/Images/{split}/{stem}.png", labels and f"{labels}/{stem}_eval.png") for stem in stems
        ]
        yield _Split("crosscity", city, number, 64, paths)


def plan(datasets: Sequence[str], counts: Counts, size: tuple[int, int], seed: int, shift: float) -> list[Task]:
    """Every image of the chosen datasets; ``size`` is the target's (width, height)."""
    width, height = size
    return [
        Task((seed, DATASETS.index(name), number, i), name, domain, shift, (width, round(height * rows / 64)), *paths)
        for name, domain, number, rows, files in _splits(counts)
        if name in datasets
        for i, paths in enumerate(files)
    ]
