"""Measures the input: images a second per core, beside a PyTorch DataLoader that does the same with Pillow.

  python scripts/benchmark_input.py --compare=torch --output=input.json
  python scripts/benchmark_input.py --memory_batches=2000

Images are generated at GTA5's size, 1914x1052, and read as whole PNGs resized to 1280x720 and as records stored at
1280x720 already; with and without colour jitter. Rates divide by CPU time, so a busy machine changes them little.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageEnhance

from fada_jax import classes, cli
from fada_jax.errors import UserError

FULL, SIZE = (1914, 1052), (1280, 720)
JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
NEEDED = 120.0  # Images a second that keep an H100 busy: about 15 adversarial steps of 4 + 4.


def make_raw(root: Path, count: int) -> None:
    """GTA5's layout with grainy images of about 3 MB as PNG."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(1, count + 1):
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (24, 40, 3), dtype=np.uint8)).resize(FULL, Image.BICUBIC)
        grain = random.integers(-5, 6, (FULL[1], FULL[0], 3))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(
            root / "images" / f"{i:05d}.png"
        )
        label = Image.fromarray(random.choice(np.array([7, 11, 21, 23, 26], np.uint8), (24, 40)), mode="L")
        label.resize(FULL, Image.NEAREST).save(root / "labels" / f"{i:05d}.png")


def pillow_jitter(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """torchvision's ColorJitter as it works on Pillow images."""

    def hue(image: Image.Image) -> Image.Image:
        h, s, v = image.convert("HSV").split()
        shift = np.uint8(int(random.uniform(-JITTER["hue"], JITTER["hue"]) * 255) % 256)
        h = Image.fromarray(np.asarray(h) + shift)
        return Image.merge("HSV", (h, s, v)).convert("RGB")

    def enhance(kind: Any, strength: float) -> Callable[[Image.Image], Image.Image]:
        return lambda image: kind(image).enhance(random.uniform(1 - strength, 1 + strength))

    operations = [
        enhance(ImageEnhance.Brightness, JITTER["brightness"]),
        enhance(ImageEnhance.Contrast, JITTER["contrast"]),
        enhance(ImageEnhance.Color, JITTER["saturation"]),
        hue,
    ]
    for k in random.permutation(4):
        image = operations[k](image)
    return image


def torch_batches(root: Path, jitter: bool, batch_size: int) -> Iterator[Any]:
    """The same images and labels from a PyTorch DataLoader over Pillow, in this process."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
    names = sorted(path.name for path in (root / "images").iterdir())
    table = classes.label_table("gta5", classes.get_class_set("cityscapes19"))

    class Images(Dataset):
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            image = Image.open(root / "images" / names[i]).convert("RGB")
            label = Image.open(root / "labels" / names[i])
            if image.size != SIZE:
                image, label = image.resize(SIZE, Image.BICUBIC), label.resize(SIZE, Image.NEAREST)
            if jitter:
                image = pillow_jitter(image, np.random.default_rng(i))
            return torch.from_numpy(np.array(image)), torch.from_numpy(table[np.asarray(label)])

    while True:
        yield from DataLoader(Images(), batch_size, shuffle=True, drop_last=True)


def our_batches(data_dir: Path, jitter: bool, batch_size: int) -> Iterator[Any]:
    """The training stream."""
    from input_pipeline import pipeline

    augment = pipeline.Augment(**JITTER) if jitter else pipeline.Augment()
    stream = pipeline.Stream("gta5", "train", SIZE, augment=augment)
    class_set = classes.get_class_set("cityscapes19")
    return pipeline.train_batches(data_dir, stream, class_set=class_set, batch_size=batch_size, seed=0)


def rate(batches: Iterator[Any], batch_size: int, count: int) -> float:
    """Images per second of CPU time over ``count`` batches, after two to warm up."""
    for _ in itertools.islice(batches, 2):
        pass
    began = time.process_time()
    for _ in itertools.islice(batches, count):
        pass
    return batch_size * count / (time.process_time() - began)


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(data_dir: Path, batches: int) -> list[tuple[int, float]]:
    """Resident memory at ten points over ``batches`` batches of one image."""
    points = []
    for i, _ in enumerate(itertools.islice(our_batches(data_dir, False, 1), batches), start=1):
        if i % max(1, batches // 10) == 0:
            points.append((i, round(resident_mib(), 1)))
    return points


def benchmark(*, images: int = 8, batches: int = 12, batch_size: int = 4, compare: bool = True) -> dict[str, Any]:
    """Rates per core of every case, and what they mean for a host that must keep up.

    Returns:
      ``cases``: name -> ``images_per_second_per_core``, ``cores_needed`` and, compared, ``torch`` and ``speedup``;
      ``memory_mib`` is left to ``memory``.
    """
    from input_pipeline import builders

    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_raw(root / "full", images)
        resized = root / "resized"
        for part, method in (("images", Image.BICUBIC), ("labels", Image.NEAREST)):
            (resized / part).mkdir(parents=True)
            for path in (root / "full" / part).iterdir():
                with Image.open(path) as image:
                    image.resize(SIZE, method).save(resized / part / path.name)
        builders.convert(builders.Conversion("gta5", root / "full"), root / "full_data")
        builders.convert(builders.Conversion("gta5", root / "full", resize=SIZE), root / "resized_data")
        for stored in ("full", "resized"):
            for jitter in (False, True):
                ours = rate(our_batches(root / f"{stored}_data", jitter, batch_size), batch_size, batches)
                case = {"images_per_second_per_core": ours, "cores_needed": NEEDED / ours}
                if compare:
                    theirs = rate(torch_batches(root / stored, jitter, batch_size), batch_size, batches)
                    case |= {"torch": theirs, "speedup": ours / theirs}
                cases[f"{stored}{', jitter' if jitter else ''}"] = case
    return {"cases": cases, "images_needed_per_second": NEEDED}


def table(result: dict[str, Any]) -> str:
    """The result of ``benchmark`` for reading."""
    names = {"full": "1914x1052 PNG -> 1280x720", "resized": "stored at 1280x720"}
    lines = [f"{'':<36}{'images/s/core':>14}{'DataLoader':>12}{'ratio':>8}{'cores for 120/s':>17}"]
    for name, case in result["cases"].items():
        stored, _, jitter = name.partition(", ")
        title = names[stored] + (f", {jitter}" if jitter else "")
        theirs = f"{case['torch']:>12.1f}{case['speedup']:>8.2f}" if "torch" in case else f"{'-':>12}{'-':>8}"
        lines.append(f"{title:<36}{case['images_per_second_per_core']:>14.1f}{theirs}{case['cores_needed']:>17.1f}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    from input_pipeline import builders

    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    options = flags.FLAGS
    if options.memory_batches:
        with tempfile.TemporaryDirectory() as folder:
            make_raw(Path(folder) / "raw", 4)
            builders.convert(builders.Conversion("gta5", Path(folder) / "raw", resize=SIZE), folder)
            result: dict[str, Any] = {"memory_mib": memory(Path(folder), options.memory_batches)}
        print("\n".join(f"{step:>6} batches: {mib:,.1f} MiB resident" for step, mib in result["memory_mib"]))
    else:
        result = benchmark(batches=options.batches, compare=options.compare == "torch")
        print(table(result))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("compare", "", ["", "torch"], "Measure a PyTorch DataLoader beside it.")
    flags.DEFINE_integer("batches", 12, "Batches of 4 images for each figure.", lower_bound=1)
    flags.DEFINE_integer("memory_batches", 0, "Instead: print resident memory over as many batches.", lower_bound=0)
    flags.DEFINE_string("output", "", "JSON file to write.")
    cli.run(main)
