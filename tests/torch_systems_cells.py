"""FCNs in the wild, Cross-City and AdaptPatch in PyTorch, beside ``torch_systems``.

Their description leaves some points open; they are read as follows. A loss of both domains is the mean of the two
domains' means. Cells are those of the features, and cover 8x8 pixels, fewer at the lower and right edge. The 4x
subsampled grid of the constraint is every fourth pixel of the image. The upper and lower 10% values are linearly
interpolated. An absent class has probability 0, which is where the dual of ``sum <= 0`` leads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_systems import IGNORE, SOURCE, TARGET, Options, System, Terms, View, domain_loss, probabilities, total

__all__ = ["AdaptPatch", "CellOptions", "ClassSizes", "CrossCity", "FcnWild", "class_sizes", "nearest", "total"]

CELL = 8


@dataclasses.dataclass(frozen=True)
class CellOptions(Options):
    """``ramp`` and ``class_start`` are shares of the run; ``slack`` bounds the multiplier of a lower bound."""

    ramp: float = 1200 / 60_000
    class_start: float = 1000 / 60_000
    lambda_constraint: float = 1.0
    lambda_class: float = 1.0
    slack: float = 100.0
    lambda_clusters: float = 0.01
    lambda_patch: float = 0.0005


class ClassSizes(NamedTuple):
    """Of the share of an image's pixels that each class has, over source images that hold it, [K] each."""

    low: np.ndarray  # alpha
    mean: np.ndarray  # delta
    high: np.ndarray  # gamma


def class_sizes(shares: np.ndarray) -> ClassSizes:
    """Statistics of ``shares`` [images, K]; 0 for classes that no image holds."""
    sizes = np.zeros((3, shares.shape[1]))
    for k, column in enumerate(shares.T):
        held = column[column > 0]
        if held.size:
            sizes[:, k] = np.quantile(held, 0.1), held.mean(), np.quantile(held, 0.9)
    return ClassSizes(*sizes)


def tilt(p: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """``q_i(c)`` proportional to ``p_i(c) exp(multipliers(c))``."""
    q = p * np.exp(multipliers - multipliers.max())
    return q / q.sum(axis=1, keepdims=True)


def nearest(p: np.ndarray, sizes: ClassSizes, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """The distribution nearest to ``p`` [pixels, K] within the bounds, and which classes are judged present.

    Minimises ``mean_i KL(q_i || p_i) + slack * sum_c xi_c`` under ``mean - xi <= mean_i q_i <= high`` and ``xi >= 0``
    by way of the dual: the multiplier of a lower bound is in [0, slack], that of an upper bound is not negative.
    """
    p = np.asarray(p, np.float64)
    present = p.mean(axis=0) > 0.1 * sizes.low
    present &= sizes.high > 0
    if not present.any():
        return p, present
    inside = p[:, present] / p[:, present].sum(axis=1, keepdims=True)
    count = inside.shape[1]
    lower, upper = sizes.mean[present], sizes.high[present]

    def negative_dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        low, high = multipliers[:count], multipliers[count:]
        shift = low - high
        top = shift.max()
        log_sum = np.log((inside * np.exp(shift - top)).sum(axis=1)) + top
        shares = tilt(inside, shift).mean(axis=0)
        return -(low @ lower - high @ upper - log_sum.mean()), -np.concatenate((lower - shares, shares - upper))

    bounds = [(0, slack)] * count + [(0, slack * 10)] * count
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    found = scipy.optimize.minimize(
        negative_dual, np.zeros(2 * count), jac=True, bounds=bounds, method="L-BFGS-B", options=options
    )
    q = np.zeros_like(p)
    q[:, present] = tilt(inside, polished(inside, found.x[:count], found.x[count:], lower, upper, slack))
    return q, present


def polished(
    p: np.ndarray, low: np.ndarray, high: np.ndarray, lower: np.ndarray, upper: np.ndarray, slack: float
) -> np.ndarray:
    """The multipliers of a solution of the dual, so exact that each bound that is met is met in float64.

    A line search ends where values differ by rounding, which is half of the digits of the multipliers.
    """
    shift, bound = low - high, np.where(low > high, lower, upper)
    met = ((low > 0) & (low < slack)) | ((high > 0) & (high < 10 * slack))
    for _ in range(5):
        q = tilt(p, shift)
        curvature = np.diag(q.mean(axis=0)) - q.T @ q / len(q)
        shift[met] += np.linalg.lstsq(curvature[np.ix_(met, met)], (bound - q.mean(axis=0))[met], rcond=None)[0]
    return shift


def two_class(d_logits: Tensor, domain: float) -> Tensor:
    """Cross entropy of each cell, [N, h, w], from two logits."""
    return -F.log_softmax(d_logits, dim=1)[:, int(domain)]


def both_ways(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L_D and L_inverse of D's answers on both domains."""
    right = (two_class(source, SOURCE).mean() + two_class(target, TARGET).mean()) / 2
    wrong = (two_class(source, TARGET).mean() + two_class(target, SOURCE).mean()) / 2
    return right, wrong


def ramp(progress: float, length: float) -> float:
    return 2 / (1 + math.exp(-10 * progress / length)) - 1


class FcnWild(System):
    """Domain confusion of features, and bounds on the sizes of classes in target images."""

    options: CellOptions

    def __init__(
        self, generator: nn.Module, discriminators: Sequence[nn.Module], options: CellOptions, sizes: ClassSizes | None
    ) -> None:
        super().__init__(generator, discriminators, options)
        self.sizes = sizes

    def constraint(self, z: Tensor) -> Tensor:
        """Cross entropy of q and p, with the gradient ``p - q``, a tenth of it for classes that are always large."""
        z = z[:, :, ::4, ::4] / self.options.temperature
        p, log_p = F.softmax(z, dim=1).detach(), F.log_softmax(z, dim=1).detach()
        weight = torch.from_numpy(np.where(self.sizes.low > 0.1, 0.1, 1.0)).to(z.dtype)
        loss = z.new_zeros(())
        for one, share, logarithm in zip(z, p, log_p, strict=True):
            pixels = share.flatten(1).T
            q = torch.from_numpy(nearest(pixels.numpy(), self.sizes, self.options.slack)[0]).to(z.dtype)
            sloped = ((pixels - q) * weight * one.flatten(1).T).sum() / len(pixels)
            cross_entropy = -(q * logarithm.flatten(1).T).sum() / len(pixels)
            loss = loss + sloped + (cross_entropy - sloped).detach()
        return loss / len(z)

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        terms = self.segmentation(source, labels)
        d = self.discriminators[0]
        right, wrong = both_ways(d(source.features), d(target.features))
        weight = self.options.lambda_adv * ramp(progress, self.options.ramp)
        terms["confusion"] = (weight, (right + wrong) / 2)
        if self.sizes is not None:
            terms["constraint"] = (self.options.lambda_constraint, self.constraint(target.logits[0]))
        return terms

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        d = self.discriminators[0]
        return {"d0": (1.0, both_ways(d(source.features), d(target.features))[0])}


def cell_labels(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Share of each class among the pixels of each cell, [N, K, h, w]; ignored pixels count, for no class."""
    one_hot = F.one_hot(torch.where(labels == IGNORE, classes, labels.long()), classes + 1)[..., :classes]
    return cell_means(one_hot.permute(0, 3, 1, 2).to(dtype))


def cell_means(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, CELL, ceil_mode=True, count_include_pad=False)


class CrossCity(System):
    """Domain confusion of features by a global discriminator and by one a class, weighted with soft labels of cells."""

    options: CellOptions
    labels: Tensor

    def knowledge(self, labels: Tensor, source: View, target: View) -> tuple[Tensor, Tensor]:
        p = probabilities(target.logits[0], self.options).detach()
        return cell_labels(labels, source.logits[0].shape[1], p.dtype), cell_means(p)

    def class_loss(self, features: Tensor, knowledge: Tensor, domain: float) -> Tensor:
        loss = features.new_zeros(())
        for k, d in enumerate(self.discriminators[1:]):
            weight = knowledge[:, k].flatten(1)
            cells = two_class(d(features), domain).flatten(1)
            loss = loss + ((weight * cells).sum(1) / (weight.sum(1) + 5e-6)).mean()
        return loss

    def class_losses(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        """L_D and L_inverse of all class-wise discriminators."""
        of_s, of_t = self.knowledge(self.labels, source, target)
        right, wrong = (
            (self.class_loss(source.features, of_s, a) + self.class_loss(target.features, of_t, b)) / 2
            for a, b in ((SOURCE, TARGET), (TARGET, SOURCE))
        )
        return right, wrong

    def class_ramp(self, progress: float) -> float:
        start = self.options.class_start
        return 0.0 if progress < start else ramp(progress - start, self.options.ramp)

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        self.labels = labels
        terms = self.segmentation(source, labels)
        d, options = self.discriminators[0], self.options
        right, wrong = both_ways(d(source.features), d(target.features))
        terms["confusion"] = (options.lambda_adv * ramp(progress, options.ramp), (right + wrong) / 2)
        right, wrong = self.class_losses(source, target)
        weight = options.lambda_adv * options.lambda_class * self.class_ramp(progress)
        terms["class_confusion"] = (weight, (right + wrong) / 2)
        return terms

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        d = self.discriminators[0]
        return {
            "d0": (1.0, both_ways(d(source.features), d(target.features))[0]),
            "d_classes": (1.0, self.class_losses(source, target)[0]),
        }


def patch_histograms(labels: np.ndarray, classes: int, patch: tuple[int, int]) -> np.ndarray:
    """Class histograms on a 2x2 grid of each whole patch of ``labels`` [H, W]: [rows, columns, 4 * classes]."""
    rows, columns = labels.shape[0] // patch[0], labels.shape[1] // patch[1]
    found = np.zeros((rows, columns, 4, classes))
    half = patch[0] // 2, patch[1] // 2
    for r in range(rows):
        for c in range(columns):
            for i in range(4):
                y, x = r * patch[0] + i // 2 * half[0], c * patch[1] + i % 2 * half[1]
                values = labels[y : y + half[0], x : x + half[1]]
                counts = np.bincount(values[values != IGNORE].ravel(), minlength=classes)
                found[r, c, i] = counts / max(counts.sum(), 1)
    return found.reshape(rows, columns, 4 * classes)


def patch_clusters(labels: np.ndarray, centres: np.ndarray, classes: int, patch: tuple[int, int]) -> np.ndarray:
    """Index of the nearest of ``centres`` [clusters, 4 * classes] to each patch of ``labels`` [N, H, W]."""
    histograms = np.stack([patch_histograms(one, classes, patch) for one in labels])
    distance = ((histograms[..., None, :] - centres) ** 2).sum(-1)
    return distance.argmin(-1)


class PatchHead(nn.Module):
    """H: softmax output -> cluster scores of each patch."""

    def __init__(self, classes: int, width: int, clusters: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(classes, width, 1), nn.ReLU(), nn.Conv2d(width, clusters, 1))

    def forward(self, p: Tensor, cells: Sequence[int]) -> Tensor:
        return self.convs(F.adaptive_avg_pool2d(p, tuple(cells)))


class AdaptPatch(System):
    """A global discriminator of the softmax output and one of the clusters that its patches belong to.

    The generator has ``patch_head``, called with the softmax output and the number of patches. The second
    discriminator reads each cell's cluster probabilities.
    """

    options: CellOptions

    def __init__(
        self,
        generator: nn.Module,
        discriminators: Sequence[nn.Module],
        options: CellOptions,
        centres: np.ndarray,
        patch: tuple[int, int] = (32, 64),
    ) -> None:
        super().__init__(generator, discriminators, options)
        self.centres, self.patch = centres, patch

    def scores(self, p: Tensor) -> Tensor:
        return self.generator.patch_head(p, [n // side for n, side in zip(p.shape[2:], self.patch, strict=True)])

    def patches(self, p: Tensor) -> Tensor:
        return F.softmax(self.scores(p), dim=1)

    def generator_terms(self, source: View, labels: Tensor, target: View, progress: float) -> Terms:
        options = self.options
        terms = self.segmentation(source, labels)
        p_s, p_t = (probabilities(view.logits[0], options) for view in (source, target))
        clusters = patch_clusters(labels.numpy(), self.centres, p_s.shape[1], self.patch)
        terms["clusters"] = (
            options.lambda_clusters,
            F.cross_entropy(self.scores(p_s), torch.from_numpy(clusters)),
        )
        on = float(progress >= options.warm_up)
        terms["adv0"] = (on * options.lambda_adv, domain_loss(self.discriminators[0](p_t), SOURCE, options.gan))
        answer = self.discriminators[1](self.patches(p_t))
        terms["adv_patch"] = (on * options.lambda_patch, domain_loss(answer, SOURCE, options.gan))
        return terms

    def discriminator_terms(self, source: View, target: View, progress: float) -> Terms:
        terms: Terms = {}
        on = 0.5 * float(progress >= self.options.warm_up)
        for name, view, domain in (("source", source, SOURCE), ("target", target, TARGET)):
            p = probabilities(view.logits[0], self.options)
            patches = self.patches(p).detach()
            terms[f"d0_{name}"] = (on, domain_loss(self.discriminators[0](p), domain, self.options.gan))
            terms[f"d_patch_{name}"] = (on, domain_loss(self.discriminators[1](patches), domain, self.options.gan))
        return terms
