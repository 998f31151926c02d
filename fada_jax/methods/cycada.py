"""CyCADA's feature-level stage: a discriminator of single cells, which G learns from only while it is good enough.

Hoffman et al., "CyCADA: Cycle-Consistent Adversarial Domain Adaptation" (ICML 2018), section 3 and its release:
L_G = L_seg(s) + lambda L_adv(t), L_D the mean of both domains' two-class cross entropies. Its source images are those
that the pixel-level stage, ``cyclegan``, has translated, which its recipe sees to.

Known: SGD with momentum 0.99 and the rate 1e-5, lambda 0.1, and that G steps only while D has told more than 60% of the
domains apart over the last 100 steps. On equal terms G has FADA's optimizer; its own is
``--config.generator_optimizer.momentum=0.99 --config.generator_optimizer.learning_rate=1e-5``.
Unverified: that D reads the classifier's scores through 1x1 convolutions of 1,024 and 512 channels with ReLU and
dropout of a half, which drops single numbers here; that an accuracy counts cells, and counts from the first step on;
that L_seg waits with L_adv; that both domains weigh alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fada_jax.methods.alternating import Alternating, mean
from fada_jax.methods.fcn_wild import DISCRIMINATOR, domain_losses
from fada_jax.methods.interface import Batch, Metrics, States, TrainingSpec
from fada_jax.models import Outputs, Pointwise, compute_dtype
from fada_jax.ranges import Positive, Share
from fada_jax.training import optimizers
from fada_jax.training.alternation import Losses, Networks, View
from fada_jax.training.states import TrainState, create_network

# Steps whose accuracy counts, and the state that holds them: the accuracy of step n lies at n modulo this.
WINDOW, ACCURACIES = 100, "accuracies"


@dataclasses.dataclass(frozen=True)
class Cycada(Alternating):
    """G steps while D's accuracy is high.

    Attributes:
      lambda_adv: weight of L_adv.
      reads: what D reads at feature resolution: the classifier's 'scores' or the 'features' before it.
      width: channels of D's first hidden layer; the second has half of them.
      dropout: of D.
      least_accuracy: share of the cells that D must have told apart for G to step; 0: G always steps.
    """

    lambda_adv: float = 0.1
    reads: Literal["scores", "features"] = "scores"
    width: Positive = 1024
    dropout: Share = 0.5
    least_accuracy: Share = 0.6
    heads: ClassVar[tuple[str, ...]] = ("one",)

    def networks(self, rng: jax.Array, spec: TrainingSpec, outputs: Outputs) -> States:
        dtype = jnp.dtype(compute_dtype(spec.model.dtype))
        module = Pointwise((self.width, max(1, self.width // 2)), 2, dropout=self.dropout, dtype=dtype)
        tx = optimizers.discriminator_optimizer(spec.discriminator_optimizer)
        return {DISCRIMINATOR: create_network(module, tx, rng, self.read(outputs).shape[-1])}

    def read(self, outputs: Outputs) -> Any:
        """What D reads of what G gives."""
        return outputs.logits[0] if self.reads == "scores" else outputs.features

    def init(self, rng: jax.Array, spec: TrainingSpec) -> States:
        return {**super().init(rng, spec), ACCURACIES: jnp.zeros(WINDOW, jnp.float32)}

    def losses(self, view: View, networks: Networks, spec: TrainingSpec) -> Losses:
        answers = networks[DISCRIMINATOR](self.read(view.outputs), view.keys)
        own, other = (view.share * mean(loss) for loss in domain_losses(answers, view))
        told = (answers[..., 1] > answers[..., 0]) != view.is_source
        metrics = {"loss_d": 0.5 * own, "accuracy": 0.5 * view.share * mean(told.astype(jnp.float32))}
        if view.labels is None:
            return Losses(self.lambda_adv * other, 0.5 * own, {"loss_adv": other, **metrics})
        loss_seg = self.segmentation(view, view.labels, spec, (1.0,))
        return Losses(loss_seg, 0.5 * own, {"loss_seg": loss_seg, **metrics})

    def step(
        self, states: States, batch: Batch, rng: jax.Array, progress: jax.Array, spec: TrainingSpec
    ) -> tuple[States, Metrics]:
        """One iteration; see ``Method.step``. Where G does not step, its optimizer and its schedule stay, too."""
        before: TrainState = states["generator"]
        updated, metrics = super().step(states, batch, rng, progress, spec)
        after: TrainState = updated["generator"]
        accuracies = states[ACCURACIES].at[before.step % WINDOW].set(metrics["accuracy"])
        # Steps that were not yet made are zeros.
        recent = accuracies.sum() / jnp.minimum(after.step, WINDOW)
        steps = (recent > self.least_accuracy) | (self.least_accuracy == 0)
        kept = jax.tree.map(lambda new, old: jnp.where(steps, new, old), after, before)
        # Its count is the stage's: it goes on.
        updated = {**updated, "generator": kept.replace(step=after.step), ACCURACIES: accuracies}
        return updated, {**metrics, "generator_steps": steps.astype(jnp.float32)}
