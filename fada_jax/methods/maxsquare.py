"""MaxSquare: the squares of the target's probabilities are maximised, with more weight on classes rare in an image.

Chen et al., "Domain Adaptation for Semantic Segmentation with Maximum Squares Loss" (ICCV 2019), and its release:
L = L_seg(s) - lambda / (2 K) sum_{n,c} w_n p_nc^2, lambda 0.1, w_n = 1 / N or, image-wise, 1 / max(N_c^r N^(1-r), 1),
r 0.2, where N_c of the N pixels of the image are predicted as the class of pixel n. Its multi-level form, in which the
main classifier's sure pixels label layer3's, is not here.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fada_jax.methods.alternating import Alternating, probabilities
from fada_jax.methods.interface import TrainingSpec
from fada_jax.ranges import Share
from fada_jax.training.alternation import Losses, Networks, View


def class_weights(p: jax.Array, ratio: float) -> jax.Array:
    """What each pixel weighs by the class that it is predicted as, float32 [N, H, W]; the sum over an image is about 1.

    Args:
      p: probabilities, float32 [N, H, W, K].
      ratio: r.
    """
    predicted = jax.lax.stop_gradient(jnp.argmax(p, axis=-1))
    counts = jax.vmap(lambda labels: jnp.bincount(labels.ravel(), length=p.shape[-1]))(predicted).astype(jnp.float32)
    weights = 1 / jnp.maximum(counts**ratio * (p.shape[1] * p.shape[2]) ** (1 - ratio), 1)
    return jax.vmap(lambda of_class, labels: of_class[labels])(weights, predicted)


@dataclasses.dataclass(frozen=True)
class MaxSquare(Alternating):
    """Without a discriminator; ``lambda_adv`` is the weight of the squares.

    Attributes:
      image_wise: weigh pixels by the share that their class has of the image; otherwise all alike.
      ratio: r.
    """

    image_wise: bool = True
    ratio: Share = 0.2

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        del networks
        if view.labels is not None:
            return self.supervised(view, view.labels, spec)
        p = probabilities(view.outputs.logits[0], view.size, self.temperature)
        images, height, width, classes = p.shape
        weights = class_weights(p, self.ratio)[..., None] if self.image_wise else 1 / (height * width)
        loss = -view.share * (weights * p**2).sum() / (2 * images * classes)
        return Losses(self.lambda_adv * loss, 0.0, {"loss_adv": loss})
