"""Raw data sets as they lie on disk: which image and label files belong to a split.

A new layout is one function that lists its splits, one entry in ``DATASETS``, and its label ids in
``fada_jax/classes.py``; a user's own data come as ``folder`` with a class map.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fada_jax.errors import UserError
from fada_jax.storage.paths import listed

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Of data sets, cities and splits: what shards can be called.
_NAME = re.compile(r"\w[\w-]{0,99}")


def _dusk(first: int, last: int) -> tuple[str, ...]:
    """Names of CamVid's dusk frames, the sequence 0001TP, which is labelled at every 30th frame."""
    return tuple(f"0001TP_{number:06d}" for number in range(first, last + 1, 30))


# CamVid by day: split -> folder, and how the names of its sequences begin.
CAMVID_DAY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "train_day": ("train", ("0006R0_f", "0016E5_")),
    "val_day": ("val", ("0016E5_",)),
    "test_day": ("test", ("Seq05VD_f",)),
}
# CamVid at dusk: split -> folder, and its frames one by one, because scores of other frames are not comparable. What is
# reported is test_dusk. final_dusk, the other half of the public test frames, is for a last look when development is
# over: no setting is chosen and no number is reported on it before.
CAMVID_DUSK: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "train_dusk": ("train", _dusk(6690, 8520)),
    "test_dusk": ("test", _dusk(8550, 9450)),
    "final_dusk": ("test", _dusk(9480, 10380)),
}


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One image: its name in the records, its file, and the file of its label (None: unlabelled)."""

    name: str
    image: Path
    label: Path | None


Splits = Mapping[str, list[RawExample]]


def _folder(folder: Path, hint: str) -> Path:
    """``folder``, which must be there.

    Raises:
      UserError: it is not.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: {hint}")
    return folder


def _files(folder: Path, hint: str, recursive: bool = False) -> list[Path]:
    """Image files of a folder in name order, without hidden ones.

    Raises:
      UserError: the folder is not there, or holds none.
    """
    _folder(folder, hint)
    found = folder.rglob("*") if recursive else folder.iterdir()
    files = sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"{folder} holds no images: {hint}")
    for path in files:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{folder} holds a file whose name is not UTF-8, {path.name!a}: rename it") from error
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in path.name):
            raise UserError(
                f"{folder} holds a file with a line break or the like in its name, {path.name!a}: rename it"
            )
    return files


def gta5(root: Path, city: str = "") -> Splits:
    """``images/00001.png`` with ``labels/00001.png``."""
    hint = "--raw_dir must be the folder that holds images/ and labels/"
    files, labels = _files(root / "images", hint), _folder(root / "labels", hint)
    return {"train": [RawExample(p.stem, p, labels / p.name) for p in files]}


def synthia(root: Path, city: str = "") -> Splits:
    """SYNTHIA-RAND-CITYSCAPES: ``RAND_CITYSCAPES/RGB`` with 16-bit ``RAND_CITYSCAPES/GT/LABELS``."""
    base = root / "RAND_CITYSCAPES"
    hint = "--raw_dir must be the folder that holds RAND_CITYSCAPES/ with RGB/ and GT/LABELS/"
    files, labels = _files(base / "RGB", hint), _folder(base / "GT" / "LABELS", hint)
    return {"train": [RawExample(p.stem, p, labels / p.name) for p in files]}


def cityscapes(root: Path, city: str = "") -> Splits:
    """``leftImg8bit/<split>/<city>`` with ``gtFine/<split>/<city>``; the test split's dummy labels are left out."""
    splits, hint = {}, "--raw_dir must be the folder that holds leftImg8bit/ and gtFine/"
    for split in ("train", "val", "test"):
        folder = root / "leftImg8bit" / split
        if split == "test" and not folder.is_dir():
            continue
        examples = []
        if split != "test":
            _folder(root / "gtFine" / split, hint)
        for path in _files(folder, hint, recursive=True):
            stem = path.stem.removesuffix("_leftImg8bit")
            label = root / "gtFine" / split / path.parent.name / f"{stem}_gtFine_labelIds.png"
            examples.append(RawExample(stem, path, None if split == "test" else label))
        splits[split] = examples
    return splits


def crosscity(root: Path, city: str = "") -> Splits:
    """``<City>/Images/Train`` without and ``<City>/Images/Test`` with ``<City>/Labels/Test/*_eval.png``."""
    hint = f"--raw_dir must be the folder that holds {city}/"
    train = [RawExample(p.stem, p, None) for p in _files(root / city / "Images" / "Train", hint)]
    labels = _folder(root / city / "Labels" / "Test", hint)
    test = [RawExample(p.stem, p, labels / f"{p.stem}_eval.png") for p in _files(root / city / "Images" / "Test", hint)]
    return {"train": train, "test": test}


def camvid(root: Path, city: str = "") -> Splits:
    """The SegNet tutorial's folders, split by time of day (``CAMVID_DAY``, ``CAMVID_DUSK``).

    Frames that a copy lacks are left out; a file that is no frame of these splits is refused.
    """
    splits: dict[str, list[RawExample]] = {split: [] for split in (*CAMVID_DAY, *CAMVID_DUSK)}
    hint = "--raw_dir must be the folder that holds train/, trainannot/, val/, ..."
    for folder in ("train", "val", "test"):
        _folder(root / f"{folder}annot", hint)
        for path in _files(root / folder, hint):
            split = _camvid_split(folder, path.stem)
            if split is None:
                raise UserError(f"{path} is no frame of {folder}/ in CamVid's SegNet split: take it out of the folder")
            splits[split].append(RawExample(path.stem, path, root / f"{folder}annot" / path.name))
    return splits


def _camvid_split(folder: str, name: str) -> str | None:
    """The split that a frame in a folder of CamVid belongs to; None for a frame that belongs nowhere."""
    for split, (place, beginnings) in CAMVID_DAY.items():
        if place == folder and name.startswith(beginnings):
            return split
    for split, (place, names) in CAMVID_DUSK.items():
        if place == folder and name in names:
            return split
    return None


def folder(root: Path, city: str = "") -> Splits:
    """A user's own data: ``<split>/images/*`` with ``<split>/labels/*.png`` of the same stems, or unlabelled splits."""
    hint = "--raw_dir must be the folder that holds <split>/images/ and, where labelled, <split>/labels/"
    splits = {}
    for split in sorted(p.name for p in root.iterdir() if (p / "images").is_dir() and not p.name.startswith(".")):
        check_name(split, f"{root / split}: split")
        if split == "all":
            raise UserError(f"{root / split}: no split can be called 'all', which means every split: rename the folder")
        labels = root / split / "labels"
        files = _files(root / split / "images", hint)
        splits[split] = [RawExample(p.stem, p, labels / f"{p.stem}.png" if labels.is_dir() else None) for p in files]
    if not splits:
        raise UserError(f"{root} holds no <split>/images/: {hint}")
    return splits


# Data set -> function that lists its splits, given its root folder (and its city).
DATASETS: Mapping[str, Callable[[Path, str], Splits]] = {
    "gta5": gta5,
    "synthia": synthia,
    "cityscapes": cityscapes,
    "crosscity": crosscity,
    "camvid": camvid,
    "folder": folder,
}


def list_splits(dataset: str, root: Path, city: str = "") -> dict[str, list[RawExample]]:
    """The splits of a raw data set that hold images.

    Args:
      dataset: key of ``DATASETS``.
      root: its folder.
      city: Cross-City only.

    Raises:
      UserError: another layout, a name that cannot be, or several images of one name.
    """
    try:
        with listed(root):
            splits = {split: examples for split, examples in DATASETS[dataset](root, city).items() if examples}
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    for examples in splits.values():
        names = collections.Counter(example.name for example in examples)
        for example in (example for example in examples if names[example.name] > 1):
            raise UserError(
                f"{example.image.parent} holds several images called {example.name!r}: one label cannot serve both"
            )
    return splits


def check_name(name: str, title: str) -> None:
    """Refuses what cannot be the name of a data set, a city or a split, such as a path.

    Args:
      name: the name.
      title: what to call it in the error, for instance its flag.

    Raises:
      UserError: see above.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{title} {name!r} can be no name: names are made of letters, digits, _ and -")


def fingerprints(splits: Splits, root: Path) -> dict[str, str]:
    """``fingerprint`` of each split of the raw data at ``root``."""
    with listed(root):
        return {split: fingerprint(examples) for split, examples in splits.items()}


def fingerprint(examples: Iterable[RawExample]) -> str:
    """SHA-256 of the names and sizes of raw files, which tells other files from those that were converted."""
    digest = hashlib.sha256()
    for example in examples:
        for path in (example.image, example.label):
            digest.update(f"{path.name if path else ''}\0{_size(path)}\0".encode())
    return digest.hexdigest()


def _size(path: Path | None) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size if path else -1
    except OSError:
        return -1
