"""AdaptPatch: labels of patches fall into clusters, and the clusters of a prediction's patches are aligned.

Tsai et al., "Domain Adaptation for Structured Output via Discriminative Patch Representations" (ICCV 2019)
[unverified: no public code]: L = L_seg(s) + 0.01 L_d(s) + lambda L_adv(t) + lambda patch_adv L_patch(t), lambda 0.0005.
L_d is the cross entropy of H, which reads the cluster of each patch off the prediction; L_adv is that of
``adaptsegnet``, and L_patch of a discriminator that reads the probabilities of the clusters. Not said anywhere: H's
channels, that its convolutions are 1x1, and that void pixels count in no histogram.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fada_jax.errors import UserError, missing_extra
from fada_jax.methods.adaptsegnet import DISCRIMINATORS, PATCH, SOURCE, TARGET, domain_loss, patch_discriminator
from fada_jax.methods.alternating import Alternating, mean, probabilities
from fada_jax.methods.interface import States, TrainingSpec
from fada_jax.models import Outputs, Pointwise, compute_dtype, pool
from fada_jax.ranges import NonNegative, Positive, Whole
from fada_jax.training import optimizers
from fada_jax.training.alternation import Losses, Networks, View
from fada_jax.training.states import create_network

HEAD, CLUSTER_DISCRIMINATOR = "patch_head", "cluster_discriminator"
_WIDTHS, _SLOPE = (256, 512), 0.2


def cells(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches of an image; at least 1."""
    rows, columns = (max(1, n // side) for n, side in zip(size, patch, strict=True))
    return rows, columns


def histograms(labels: jax.Array, num_classes: int, grid: tuple[int, int]) -> jax.Array:
    """Class histograms of the quarters of each patch, float32 [N, rows, columns, 4 K].

    Args:
      labels: uint8 [N, H, W]; ignored pixels do not count, and a quarter without others has an empty histogram.
      num_classes: K.
      grid: rows and columns of patches.
    """
    one_hot = labels[..., None].astype(jnp.int32) == jnp.arange(num_classes)
    shares = pool(one_hot, (2 * grid[0], 2 * grid[1]))
    shares /= jnp.maximum(shares.sum(axis=-1, keepdims=True), 1e-9)
    quarters = shares.reshape(len(labels), grid[0], 2, grid[1], 2, num_classes).transpose(0, 1, 3, 2, 4, 5)
    return quarters.reshape(len(labels), *grid, 4 * num_classes)


def nearest_cluster(features: jax.Array, centres: jax.Array) -> jax.Array:
    """Number of the nearest of the centres [C, D] to features [..., D], int32 [...]."""
    products = jnp.einsum("...d,cd->...c", features, centres, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(centres), axis=-1) - 2 * products, axis=-1)


@dataclasses.dataclass(frozen=True)
class AdaptPatch(Alternating):
    """Alignment of patches by cluster beside that of the prediction.

    Attributes:
      patch_height, patch_width: pixels of a patch.
      clusters: how many K-means makes of the source's patches.
      head_width: channels between the two convolutions of H.
      lambda_clusters: weight of L_d.
      patch_adv: weight of L_patch, as a share of ``lambda_adv``.
      warmup_steps: before L_adv and L_patch, and before the discriminators learn.
    """

    patch_height: Positive = 32
    patch_width: Positive = 64
    clusters: Positive = 50
    head_width: Positive = 64
    lambda_clusters: NonNegative = 0.01
    patch_adv: NonNegative = 1.0
    warmup_steps: Whole = 10_000
    partners: ClassVar[tuple[str, ...]] = (HEAD,)
    least_size: ClassVar[int] = PATCH

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        del outputs
        dtype, keys = jnp.dtype(compute_dtype(spec.model.dtype)), jax.random.split(rng, 3)
        head = Pointwise((self.head_width,), self.clusters, dtype=dtype)
        reader = Pointwise(_WIDTHS, 1, slope=_SLOPE, dtype=dtype)
        # H is a head of the generator, and its rate is that of one.
        of_head = optimizers.generator_optimizer(spec.generator_optimizer)
        of_reader = optimizers.discriminator_optimizer(spec.discriminator_optimizer)
        return {
            DISCRIMINATORS[0]: patch_discriminator(keys[0], spec, spec.model.num_classes),
            HEAD: create_network(head, of_head, keys[1], spec.model.num_classes),
            CLUSTER_DISCRIMINATOR: create_network(reader, of_reader, keys[2], self.clusters),
        }

    def statistics(self, spec: TrainingSpec) -> Mapping[str, tuple[int, ...]]:
        return {"centres": (self.clusters, 4 * spec.model.num_classes)}

    def prepare(self, labels: Iterator[np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
        """K-means of the histograms of all patches.

        Raises:
          UserError: fewer patches than clusters, or scikit-learn is not installed.
        """
        try:
            from sklearn.cluster import KMeans
        except ImportError as error:
            raise UserError(missing_extra(error) or str(error)) from error
        count = jax.jit(histograms, static_argnums=(1, 2))
        patch = self.patch_height, self.patch_width
        found = [np.asarray(count(label[None], num_classes, cells(label.shape, patch))) for label in labels]
        points = np.concatenate([x.reshape(-1, 4 * num_classes) for x in found])
        if len(points) < self.clusters:
            raise UserError(
                f"config.options.clusters={self.clusters}: the source has {len(points)} patches of "
                f"{self.patch_height}x{self.patch_width} pixels in all: ask for as many clusters or fewer"
            )
        return {"centres": KMeans(self.clusters, n_init=1, random_state=0).fit(points).cluster_centers_}

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        p = probabilities(view.outputs.logits[0], view.size, self.temperature)
        grid = cells(view.size, (self.patch_height, self.patch_width))
        scores = networks[HEAD](pool(p, grid))
        answers = (networks[DISCRIMINATORS[0]](p), networks[CLUSTER_DISCRIMINATOR](jax.nn.softmax(scores)))
        begun = (view.step >= self.warmup_steps).astype(jnp.float32)
        domain = SOURCE if view.is_source else TARGET
        # A half, since a discriminator has two domains.
        loss_d = begun * 0.5 * view.share * sum(mean(domain_loss(answer, domain)) for answer in answers)
        if view.labels is not None:
            loss_seg = self.segmentation(view, view.labels, spec, (1.0,))
            wanted = nearest_cluster(histograms(view.labels, p.shape[-1], grid), view.statistics["centres"])
            of_patches = optax.softmax_cross_entropy_with_integer_labels(scores, wanted)
            loss_clusters = view.share * mean(of_patches)
            metrics = {"loss_seg": loss_seg, "loss_clusters": loss_clusters, "loss_d": loss_d}
            return Losses(loss_seg + self.lambda_clusters * loss_clusters, loss_d, metrics)
        loss_adv, loss_patch = (begun * view.share * mean(domain_loss(answer, SOURCE)) for answer in answers)
        metrics = {"loss_adv": loss_adv, "loss_patch": loss_patch, "loss_d": loss_d}
        return Losses(self.lambda_adv * (loss_adv + self.patch_adv * loss_patch), loss_d, metrics)
