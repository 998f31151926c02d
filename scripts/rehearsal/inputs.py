"""The inputs of a rehearsal: raw data in their real layouts and sizes, and weights as ImageNet models have them.

All of it is random; pictures are smooth, and labels hold every id of their data set in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fada_jax import classes
from fada_jax.scripts.miniature.files import write_label
from fada_jax.scripts.miniature.layouts import Counts, plan
from fada_jax.scripts.rehearsal.released import RESNET, VGG

# The city of Cross-City.
CITY = "Rome"
# (width, height) of every image of a data set.
SIZES = {"gta5": (1914, 1052), "synthia": (1280, 760), "cityscapes": (2048, 1024), "crosscity": (2048, 1024)}
# Config keys that make the networks small; a rehearsal changes nothing else about them.
_DISCRIMINATOR = {"discriminator.widths": (8, 8)}
SMALL: dict[str, dict[str, Any]] = {
    RESNET: {
        "model.stage_sizes": (1, 1, 1, 1),
        "model.widths": (4, 6, 8, 12),
        "model.stem_width": 8,
        **_DISCRIMINATOR,
    },
    VGG: {"model.widths": (8, 8, 8, 8, 8, 32), **_DISCRIMINATOR},
}


def picture(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth random image with some grain, uint8 [H, W, 3]."""
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + random.integers(-12, 13, (height, width, 1), dtype=np.int16), 0, 255).astype(np.uint8)


def enlarged(coarse: np.ndarray, width: int, height: int) -> np.ndarray:
    """A 12x16 map in blocks, [H, W]."""
    large = np.kron(coarse, np.ones((-(-height // 12), -(-width // 16)), coarse.dtype))
    return np.ascontiguousarray(large[:height, :width])


def blocks(random: np.random.Generator, dataset: str) -> np.ndarray:
    """Random raw ids in blocks, every id of the data set among them, uint8 [H, W]."""
    defined = np.array(sorted(classes.ENCODINGS[dataset].defined), np.uint8)
    return enlarged(random.permutation(np.resize(defined, 12 * 16)).reshape(12, 16), *SIZES[dataset])


def raw_files(dataset: str, root: Path) -> Iterator[tuple[Path, Path | None]]:
    """Images of a raw data set, each with its label; None: unlabelled."""
    counts = Counts(source=4, target=3, val=1, test=0, city_train=3, city_test=1)
    for task in plan((dataset,), counts, size=SIZES[dataset], seed=0, shift=0.0):
        if task.domain in (dataset, CITY):
            image, label = (root / name.removeprefix(f"{dataset}/") for name in (task.image, task.label))
            yield image, label if task.label else None


def make_raw(dataset: str, root: Path) -> None:
    """Writes a few images of a data set in its raw layout and at its real size."""
    random = np.random.default_rng(list(SIZES).index(dataset))
    for image, label in raw_files(dataset, root):
        for path in filter(None, (image, label)):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(random, *SIZES[dataset])).save(image, compress_level=1)
        if label:
            instances = random.integers(0, 60_000, (12, 16), dtype=np.uint16)
            write_label(label, dataset, blocks(random, dataset), enlarged(instances, *SIZES[dataset]))


def torchvision_resnet(path: Path) -> None:
    """A torch file with the names of torchvision's ResNet, narrow and random."""
    import torch

    random, tensors = torch.Generator().manual_seed(0), {}

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        scale = (2 / (inputs * kernel * kernel)) ** 0.5
        tensors[f"{name}.weight"] = scale * torch.randn(outputs, inputs, kernel, kernel, generator=random)

    def norm(name: str, channels: int) -> None:
        tensors[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=random)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=random)
        tensors[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=random)
        tensors[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=random)
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(1000)

    small = SMALL[RESNET]
    inputs = small["model.stem_width"]
    conv("conv1", inputs, 3, 7)
    norm("bn1", inputs)
    for stage, (count, width) in enumerate(
        zip(small["model.stage_sizes"], small["model.widths"], strict=True), start=1
    ):
        for block in range(count):
            name = f"layer{stage}.{block}"
            for i, (outputs, channels, kernel) in enumerate(
                ((width, inputs, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                conv(f"{name}.conv{i}", outputs, channels, kernel)
                norm(f"{name}.bn{i}", outputs)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * width, inputs, 1)
                norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    tensors["fc.weight"] = 0.01 * torch.randn(1000, inputs, generator=random)
    tensors["fc.bias"] = torch.zeros(1000)
    torch.save(tensors, path)


def caffe_vgg(path: Path) -> None:
    """A torch file with the names of VGG-16, narrow and random, for images of 0 to 255."""
    import torch

    random, tensors, inputs = torch.Generator().manual_seed(1), {}, 3
    width = SMALL[VGG]["model.widths"]
    for block, indices in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))):
        for index in indices:
            scale = (2 / (9 * inputs)) ** 0.5 / (8 if index == 0 else 1)
            tensors[f"features.{index}.weight"] = scale * torch.randn(width[block], inputs, 3, 3, generator=random)
            tensors[f"features.{index}.bias"] = 0.1 * torch.randn(width[block], generator=random)
            inputs = width[block]
    for index, outputs, inputs in ((0, 16, 8), (3, 16, 16), (6, 10, 16)):
        tensors[f"classifier.{index}.weight"] = torch.randn(outputs, inputs, generator=random)
        tensors[f"classifier.{index}.bias"] = torch.zeros(outputs)
    torch.save(tensors, path)
