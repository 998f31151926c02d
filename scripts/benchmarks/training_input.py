"""The training input: images a second per core, beside a PyTorch DataLoader on Pillow; its memory, and how it resumes.

Images are generated at GTA5's size, 1914x1052, as PNGs of about 2.5 MB; the DataLoader reads those files, or
PNGs of 1280x720, and fada-jax what ``--encoding=tiff`` converts them to. Rates divide by CPU time.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageEnhance

from fada_jax import classes
from fada_jax.input_pipeline import conversion, streams
from fada_jax.input_pipeline.stream import Augment, Stream

FULL, SIZE = (1914, 1052), (1280, 720)
JITTER = Augment(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
IDS = np.array([7, 11, 21, 23, 26], np.uint8)
BATCH_SIZE = 4
NEEDED = 120.0  # Images a second that keep an H100 busy: about 15 adversarial steps of 4 + 4.


def _field(random: np.random.Generator, detail: int, channels: int) -> np.ndarray:
    """Smooth noise with about ``detail`` waves across, float32 [1052, 1914, channels]."""
    noise = random.normal(size=(channels, detail * 9 // 16 + 1, detail)).astype(np.float32)
    return np.stack([np.asarray(Image.fromarray(x).resize(FULL, Image.Resampling.BICUBIC)) for x in noise], -1)


def make_raw(root: Path, count: int) -> None:
    """GTA5's layout: detail of every size that weakens as it gets finer, objects with edges, and a camera's grain."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(1, count + 1):
        random = np.random.default_rng(i)
        regions = _field(random, 12, len(IDS)).argmax(-1)
        image = 110 + random.normal(0, 30, (len(IDS), 3))[regions]
        for octave in range(6):
            image += (_field(random, 4 << octave, 1) + 0.35 * _field(random, 4 << octave, 3)) * 40 / 1.6**octave
        image += random.normal(0, 1.4, (*image.shape[:2], 1)) + random.normal(0, 0.5, image.shape)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "images" / f"{i:05d}.png")
        Image.fromarray(IDS[regions]).save(root / "labels" / f"{i:05d}.png")


def pillow_jitter(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """torchvision's ColorJitter as it works on Pillow images."""

    def hue(image: Image.Image) -> Image.Image:
        h, s, v = image.convert("HSV").split()
        shift = np.uint8(int(random.uniform(-JITTER.hue, JITTER.hue) * 255) % 256)
        h = Image.fromarray(np.asarray(h) + shift)
        return Image.merge("HSV", (h, s, v)).convert("RGB")

    def enhance(kind: Any, strength: float) -> Callable[[Image.Image], Image.Image]:
        return lambda image: kind(image).enhance(random.uniform(1 - strength, 1 + strength))

    operations = [
        enhance(ImageEnhance.Brightness, JITTER.brightness),
        enhance(ImageEnhance.Contrast, JITTER.contrast),
        enhance(ImageEnhance.Color, JITTER.saturation),
        hue,
    ]
    for k in random.permutation(4):
        image = operations[k](image)
    return image


# Colour jitter: none, of the image at its own size as released, or after resizing (``jitter_first=False``).
JITTERS = ("", "jitter", "jitter last")


def torch_batches(root: Path, jitter: str) -> Iterator[Any]:
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
            label: Image.Image = Image.open(root / "labels" / names[i])
            if jitter == "jitter":
                image = pillow_jitter(image, np.random.default_rng(i))
            if image.size != SIZE:
                image = image.resize(SIZE, Image.Resampling.BICUBIC)
                label = label.resize(SIZE, Image.Resampling.NEAREST)
            if jitter == "jitter last":
                image = pillow_jitter(image, np.random.default_rng(i))
            return torch.from_numpy(np.array(image)), torch.from_numpy(table[np.asarray(label)])

    while True:
        yield from DataLoader(Images(), BATCH_SIZE, shuffle=True, drop_last=True)


def our_batches(data_dir: Path, jitter: str, batch_size: int = BATCH_SIZE, start_step: int = 0) -> Iterator[Any]:
    """The training stream."""
    augment = dataclasses.replace(JITTER, jitter_first=jitter == "jitter") if jitter else Augment()
    stream = Stream("gta5", "train", SIZE, augment=augment, sampling="balanced")
    class_set = classes.get_class_set("cityscapes19")
    return streams.train_batches(
        data_dir, stream, class_set=class_set, batch_size=batch_size, seed=0, start_step=start_step
    )


def rate(batches: Iterator[Any], count: int) -> float:
    """Images per second of CPU time over ``count`` batches, after two to warm up."""
    for _ in itertools.islice(batches, 2):
        pass
    began = time.process_time()
    for _ in itertools.islice(batches, count):
        pass
    return BATCH_SIZE * count / (time.process_time() - began)


def measure_rates(batches: int, compare: bool) -> dict[str, Any]:
    """Rates per core of every case, and what they mean for a host that must keep up.

    Returns:
      ``cases``: name -> ``images_per_second_per_core``, ``cores_needed`` and, compared, ``torch`` and ``speedup``;
      ``megabytes``: an image as PNG and as record, at both sizes.
    """
    result: dict[str, Any] = {"cases": {}, "images_needed_per_second": NEEDED, "megabytes": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_raw(root / "full", 8)
        for part, method in (("images", Image.Resampling.BICUBIC), ("labels", Image.Resampling.NEAREST)):
            (root / "resized" / part).mkdir(parents=True)
            for path in (root / "full" / part).iterdir():
                with Image.open(path) as image:
                    image.resize(SIZE, method).save(root / "resized" / part / path.name)
        for stored, resize in (("full", None), ("resized", SIZE)):
            data_dir = root / f"{stored}_data"
            conversion.convert(conversion.Conversion("gta5", root / "full", resize=resize, encoding="tiff"), data_dir)
            for kind, files in (("png", root / stored), ("record", data_dir)):
                size = sum(path.stat().st_size for path in files.rglob("*") if path.suffix != ".npz" and path.is_file())
                result["megabytes"][f"{stored} {kind}"] = size / 8e6
            for jitter in JITTERS:
                ours = rate(our_batches(data_dir, jitter), batches)
                case = {"images_per_second_per_core": ours, "cores_needed": NEEDED / ours}
                if compare:
                    case["torch"] = rate(torch_batches(root / stored, jitter), batches)
                    case["speedup"] = ours / case["torch"]
                result["cases"][f"{stored}{jitter and ', '}{jitter}"] = case
    return result


def table(result: dict[str, Any]) -> str:
    """The result of ``measure_rates`` for reading."""
    names = {"full": "1914x1052 PNG -> 1280x720", "resized": "stored at 1280x720"}
    lines = [f"{'':<36}{'images/s/core':>14}{'DataLoader':>12}{'ratio':>8}{'cores for 120/s':>17}"]
    for name, case in result["cases"].items():
        stored, _, jitter = name.partition(", ")
        title = names[stored] + (f", {jitter}" if jitter else "")
        compared = f"{case['torch']:>12.1f}{case['speedup']:>8.2f}" if "torch" in case else f"{'-':>12}{'-':>8}"
        lines.append(f"{title:<36}{case['images_per_second_per_core']:>14.1f}{compared}{case['cores_needed']:>17.1f}")
    sizes = ", ".join(f"{name} {size:.2f}" for name, size in result["megabytes"].items())
    return "\n".join([*lines, f"MB an image with its label: {sizes}"])


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(batches: int) -> dict[str, Any]:
    """Resident memory at ten points over ``batches`` batches of one image."""
    points = []
    with _resized_data() as folder:
        for i, _ in enumerate(itertools.islice(our_batches(Path(folder), "", 1), batches), start=1):
            if i % max(1, batches // 10) == 0:
                points.append((i, round(resident_mib(), 1)))
                print(f"{points[-1][0]:>6} batches: {points[-1][1]:,.1f} MiB resident", flush=True)
    return {"memory_mib": points}


def measure_resume(step: int) -> dict[str, Any]:
    """Seconds to the first batch from step 0 and from ``step``, the better of three."""
    seconds = {}
    with _resized_data() as folder:
        for start in (0, step):
            times = []
            for _ in range(3):
                began = time.perf_counter()
                next(our_batches(Path(folder), "jitter", start_step=start))
                times.append(time.perf_counter() - began)
            seconds[start] = min(times)
            print(f"step {start}: first batch after {seconds[start]:.2f} s")
    return {"seconds_to_first_batch": seconds}


def _resized_data() -> tempfile.TemporaryDirectory:
    """A folder with four generated images converted at 1280x720."""
    folder = tempfile.TemporaryDirectory()
    make_raw(Path(folder.name) / "raw", 4)
    conversion.convert(
        conversion.Conversion("gta5", Path(folder.name) / "raw", resize=SIZE, encoding="tiff"), folder.name
    )
    return folder


def run(options: flags.FlagValues) -> dict[str, Any]:
    """Measures what the flags ask for, prints it and returns it."""
    if options.memory_batches:
        return measure_memory(options.memory_batches)
    if options.resume_step:
        return measure_resume(options.resume_step)
    result = measure_rates(options.batches, options.compare == "torch")
    print(table(result))
    return result
