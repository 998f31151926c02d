"""One alternating iteration of any number of networks: a system says its losses, and this says what they are for.

FADA's own iteration is ``steps.adversarial_step``: class knowledge decides there which pixels count, and that is known
after the forward pass alone. Here every mean is over what is counted beforehand, so that each micro-batch and each
device adds its share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fada_jax.classes import IGNORE
from fada_jax.models import Outputs, height_width
from fada_jax.preprocessing import Preprocessing, normalise
from fada_jax.training import reduction, steps
from fada_jax.training.states import TrainState

# Networks by name: called as the modules are, with the parameters whose gradient is taken.
Networks = Mapping[str, Callable[..., Any]]
GENERATOR = "generator"
# Of a part of a batch; all else is in ``View.estimates``.
_NO_ESTIMATES = ("image", "label", "key")


class View(NamedTuple):
    """What a system's losses see of one domain of a micro-batch.

    Attributes:
      domain: ``source`` or ``target``.
      outputs: of G.
      labels: uint8 [n, H, W], 255 ignored; None where the domain has none.
      size: (H, W) of the images.
      share: of the domain's images, which makes a mean over these an addend of the mean over all.
      labelled: labelled pixels of the whole batch, float32, at least 1.
      progress: share of the steps that are done, float32 from 0 to 1.
      step: number of the step, int32 from 0.
      keys: of each image, for what is drawn at random; the same for any number of devices.
      statistics: of the source that the method has prepared, by name.
      estimates: of each image, whatever the batch holds beside images and labels, by name.
    """

    domain: str
    outputs: Outputs
    labels: jax.Array | None
    size: tuple[int, int]
    share: float
    labelled: jax.Array
    progress: jax.Array
    step: jax.Array
    keys: jax.Array
    statistics: Mapping[str, jax.Array]
    estimates: Mapping[str, jax.Array] = MappingProxyType({})

    @property
    def is_source(self) -> bool:
        return self.domain == "source"


class Losses(NamedTuple):
    """What a system says of a view; sums over views are the means over the batch.

    Attributes:
      generator: minimised by G and its partners, with the discriminators constant.
      discriminators: minimised by them, with what they read constant.
      metrics: scalars to log.
    """

    generator: jax.Array | float
    discriminators: jax.Array | float
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Alternation:
    """How a system is trained.

    Attributes:
      losses: of a view, over networks by name (all but G).
      partners: networks that are trained together with G; all others are discriminators.
      penalty: of G's parameters and the progress, minimised by G, too.
      preprocessing, accumulate_steps, reduce_dtype: see ``methods.TrainingSpec``.
    """

    losses: Callable[[View, Networks], Losses]
    preprocessing: Preprocessing
    partners: tuple[str, ...] = ()
    penalty: Callable[[Any, jax.Array], jax.Array] | None = None
    accumulate_steps: int = 1
    reduce_dtype: reduction.ReduceType = "float32"

    def step(
        self,
        states: Mapping[str, Any],
        batch: Mapping[str, Mapping[str, jax.Array]],
        rng: jax.Array,
        progress: jax.Array,
        statistics: Mapping[str, jax.Array] | None = None,
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """One iteration: all gradients are taken at the old weights, then every network steps.

        Args:
          states: ``generator`` and the other networks, each a TrainState; what is none stays as it is.
          batch: ``source`` with ``image`` uint8 [N, H, W, 3] and ``label`` uint8 [N, H, W]; ``target`` with ``image``
            uint8 [M, H', W', 3] and, in self-training, its ``label``; or none of it. All else is in ``View.estimates``.
          rng, progress: of the step.
          statistics: of ``View``.

        Returns:
          the updated states; ``metrics`` of the losses with ``grad_norm`` of G.
        """
        networks = {name: state for name, state in states.items() if isinstance(state, TrainState)}
        images = {name: part["image"].shape[0] for name, part in batch.items()}
        keyed = {
            name: {**part, "key": jax.random.split(jax.random.fold_in(rng, i), images[name])}
            for i, (name, part) in enumerate(batch.items())
        }

        def gradients(variables: Any, batch: Any) -> tuple[Any, dict[str, jax.Array], Any]:
            params, collections, progress, step, statistics = variables
            counts = [jnp.sum(part["label"] != IGNORE, dtype=jnp.int32) for part in batch.values() if "label" in part]
            labelled = reduction.total(sum(counts))
            labelled = jnp.maximum(labelled, 1).astype(jnp.float32)
            known = _Known(self, networks, params, images, labelled, progress, step, statistics)
            (grads, metrics), collections = steps.accumulate(known.sums, collections, batch, self.accumulate_steps)
            return reduction.total(grads, self.reduce_dtype), reduction.total(metrics), collections

        generator = networks[GENERATOR]
        params = {name: state.params for name, state in networks.items()}
        variables = params, generator.collections, progress, generator.step, statistics or {}
        grads, metrics, collections = reduction.over_devices(gradients, variables, keyed)
        if self.penalty:
            metrics["loss_weights"], added = jax.value_and_grad(self.penalty)(generator.params, progress)
            grads[GENERATOR] = jax.tree.map(jnp.add, grads[GENERATOR], added)
        metrics["grad_norm"] = optax.tree.norm(grads[GENERATOR])
        updated = {
            name: state.apply_gradients(
                grads=grads[name], collections=collections if name == GENERATOR else state.collections
            )
            for name, state in networks.items()
        }
        return {**states, **updated}, metrics


class _Known(NamedTuple):
    """What is known before the forward pass of a micro-batch; see ``Alternation`` and ``View``."""

    plan: Alternation
    networks: Mapping[str, TrainState]
    params: Mapping[str, Any]
    images: Mapping[str, int]
    labelled: jax.Array
    progress: jax.Array
    step: jax.Array
    statistics: Mapping[str, jax.Array]

    def sums(self, collections: Any, batch: Mapping[str, Mapping[str, jax.Array]]) -> tuple[Any, Any]:
        """Gradients and metrics of a micro-batch, the source first; and the updated collections."""
        total: Any = None
        for name in ("source", "target"):
            if name not in batch:
                continue
            # The target's forward waits for the source's backward: their activations never live together.
            part = dict(batch[name])
            if total is not None:
                part["image"] = steps.after(part["image"], total[0])
            sums, collections = self.domain(name, part, collections)
            total = sums if total is None else (jax.tree.map(jnp.add, total[0], sums[0]), _added(total[1], sums[1]))
        return total, collections

    def domain(self, name: str, part: Mapping[str, jax.Array], collections: Any) -> tuple[Any, Any]:
        """Gradients of every network and the metrics of one domain, and the updated collections."""
        generator = self.networks[GENERATOR]
        images = normalise(part["image"], self.plan.preprocessing)
        share = images.shape[0] / self.images[name]

        def forward(params: Any) -> tuple[Outputs, Any]:
            variables = {"params": params, **collections}
            outputs, updated = generator.apply_fn(
                variables, images, train=True, mutable=["batch_stats"], method="outputs"
            )
            return outputs, {**collections, **updated}

        def losses(outputs: Outputs, params: Mapping[str, Any]) -> tuple[tuple[jax.Array, jax.Array], Any]:
            view = View(
                name,
                outputs,
                part.get("label"),
                height_width(images),
                share,
                self.labelled,
                self.progress,
                self.step,
                part["key"],
                self.statistics,
                {key: x for key, x in part.items() if key not in _NO_ESTIMATES},
            )
            said = self.plan.losses(view, {key: self._network(key, params[key]) for key in params})
            return (jnp.float32(said.generator), jnp.float32(said.discriminators)), said.metrics

        others = {key: params for key, params in self.params.items() if key != GENERATOR}
        outputs, generator_pullback, updated = jax.vjp(forward, self.params[GENERATOR], has_aux=True)
        _, pullback, metrics = jax.vjp(losses, outputs, others, has_aux=True)
        # One forward pass serves both: what each loss must not change is left out of what comes back.
        of_outputs, of_partners = pullback((jnp.float32(1), jnp.float32(0)))
        _, of_discriminators = pullback((jnp.float32(0), jnp.float32(1)))
        grads = {key: (of_partners if key in self.plan.partners else of_discriminators)[key] for key in others}
        return ({GENERATOR: generator_pullback(of_outputs)[0], **grads}, metrics), updated

    def _network(self, name: str, params: Any) -> Callable[..., Any]:
        apply = self.networks[name].apply_fn
        return lambda *arguments, **options: apply({"params": params}, *arguments, **options)


def _added(one: Mapping[str, jax.Array], other: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums of scalars by name; a name that only one has counts, too."""
    zero = jnp.float32(0)
    return {name: one.get(name, zero) + other.get(name, zero) for name in {**one, **other}}
