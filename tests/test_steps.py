"""Steps as pure functions over TrainState: the control, determinism, and one device against many."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import on_devices, quick_jit

from fada_jax import distributed
from fada_jax.errors import UserError
from fada_jax.methods import OutputSpace, SoftLabels
from fada_jax.models import ModelSpec, convolution, resize_align_corners
from fada_jax.preprocessing import IMAGENET, normalise
from fada_jax.scripts.benchmarks import compilation
from fada_jax.training import losses, optimizers, steps
from fada_jax.training import states as train_states

SPEC = ModelSpec("resnet18", 5, "group", (1, 1, 1, 1), (8, 8, 16, 16), 8, True, 4, (1, 2))
ADAM = optimizers.OptimizerSpec("adam", 1e-3, 100, weight_decay=0.0, classifier_multiplier=1.0)


@functools.cache
def make_states(norm="group", num_outputs=10, channels=16):
    spec = ModelSpec("resnet18", 5, norm, (1, 1, 1, 1), (8, 8, 16, 16), 8, True, 4, (1, 2))
    create = jax.jit(
        lambda: (
            train_states.create_generator(spec, ADAM, jax.random.key(0)),
            train_states.create_discriminator(num_outputs, channels, ADAM, jax.random.key(1), widths=(8, 8)),
        )
    )
    return create()


def make_batch(seed, count=8, height=32, width=48):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, (count, height, width), dtype=np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    return {"image": rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8), "label": label}


def adversarial(lambda_adv):
    return functools.partial(steps.adversarial_step, preprocessing=IMAGENET, method=SoftLabels(), lambda_adv=lambda_adv)


@functools.cache
def compiled_adversarial(lambda_adv):
    return quick_jit(adversarial(lambda_adv))


def test_the_control_is_the_adversarial_step_with_lambda_zero():
    generator, discriminator = make_states()
    source, target = make_batch(0), make_batch(1, height=24)
    with_d, new_d, _ = compiled_adversarial(0.0)(generator, discriminator, source, target)
    alone, _ = quick_jit(functools.partial(steps.supervised_step, preprocessing=IMAGENET, temperature=1.8))(
        generator, source
    )
    for a, b in zip(jax.tree.leaves(with_d.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(new_d.params), jax.tree.leaves(discriminator.params), strict=True)
    ]
    assert min(moved) > 0  # D learns all the same.


def test_lambda_changes_only_the_generator():
    generator, discriminator = make_states()
    source, target = make_batch(0), make_batch(1, height=24)
    g0, d0, m0 = compiled_adversarial(0.0)(generator, discriminator, source, target)
    g1, d1, m1 = compiled_adversarial(1.0)(generator, discriminator, source, target)
    assert (
        max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(g0.params), jax.tree.leaves(g1.params), strict=True))
        > 1e-5
    )
    for a, b in zip(jax.tree.leaves(d0.params), jax.tree.leaves(d1.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert float(m0["loss_d"]) == pytest.approx(float(m1["loss_d"]), rel=1e-6)


def test_output_space_alignment_reaches_the_classifier():
    """The gradient of G is that of L_seg + lambda L_adv written down plainly, with D on softmax(z / T)."""
    generator, discriminator = make_states(num_outputs=2, channels=5)
    source, target = make_batch(0), make_batch(1, height=24)
    step = functools.partial(steps.adversarial_step, preprocessing=IMAGENET, method=OutputSpace(), lambda_adv=0.5)
    new_generator, new_discriminator, _ = quick_jit(step)(generator, discriminator, source, target)

    def forward(params, batch):
        logits, _ = generator.apply_fn({"params": params}, normalise(batch["image"], IMAGENET))
        return logits / 1.8, batch["image"].shape[1:3]

    def domain(d_params, logits, size, d):
        d_logits = discriminator.apply_fn({"params": d_params}, jax.nn.softmax(logits))
        return -jnp.mean(jax.nn.log_softmax(resize_align_corners(d_logits, size))[..., d])

    def g_loss(params):
        logits, size = forward(params, source)
        seg = losses.segmentation_loss(resize_align_corners(logits, size), source["label"])
        return seg + 0.5 * domain(discriminator.params, *forward(params, target), 0)

    def d_loss(params):
        both = (domain(params, *forward(generator.params, batch), d) for d, batch in enumerate((source, target)))
        return 0.5 * sum(both)

    for state, loss, old in ((new_generator, g_loss, generator), (new_discriminator, d_loss, discriminator)):
        expected = jax.tree.leaves(quick_jit(jax.grad(loss))(old.params))
        # Adam's first moment after one step is the gradient times 1 - b1.
        moments = [value for _, value in optax.tree.get_all_with_path(state.opt_state, "mu")]
        got = [x / (1 - ADAM.b1) for x in jax.tree.leaves(moments)]
        assert [x.shape for x in got] == [x.shape for x in expected]
        error = np.sqrt(sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(got, expected, strict=True)))
        assert error < 1e-4 * np.sqrt(sum(float(jnp.sum(b**2)) for b in expected))


def test_the_step_is_deterministic_and_compiles_once():
    step = quick_jit(adversarial(0.1))
    start = make_states()
    runs = []
    for _ in range(2):
        states = start
        for i in range(3):
            *states, metrics = step(*states, make_batch(i), make_batch(10 + i))
        runs.append(jax.tree.leaves((states, metrics)))
    assert step._cache_size() == 1
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_networks_learn_a_constant_scene():
    generator, _ = make_states()
    batch = make_batch(0)
    batch["label"] = np.where(batch["image"][..., 0] > 0, 3, 255).astype(np.uint8)
    step = quick_jit(functools.partial(steps.supervised_step, preprocessing=IMAGENET))
    first = None
    for _ in range(40):
        generator, metrics = step(generator, batch)
        first = first or float(metrics["loss_seg"])
    assert float(metrics["loss_seg"]) < 0.2 * first


MESHES = {"data 2": (2, 1, 1), "data 8": (8, 1, 1), "data 2 x fsdp 2": (4, 2, 1), "data 2 x spatial 4": (8, 1, 4)}


# Live batch norm differs in how its statistics meet, over images and over rows.
BY_NORM = {"group": tuple(MESHES), "live": ("data 8", "data 2 x spatial 4")}


def two_steps(norm, num_devices, fsdp, spatial):
    """Gradients, parameters, statistics and metrics after two sharded steps, as one flat list a network."""
    mesh = distributed.make_mesh(num_devices, fsdp, spatial)
    # Dilations far beyond what one device holds of the features.
    spec = ModelSpec("resnet18", 5, norm, (1, 1, 1, 1), (16, 16, 32, 64), 16, True, 4, (2, 24))
    sgd = optimizers.OptimizerSpec("sgd", 1e-2, 100)
    states = jax.jit(
        lambda: (
            train_states.create_generator(spec, sgd, jax.random.key(0)),
            train_states.create_discriminator(10, 64, sgd, jax.random.key(1), widths=(32, 16)),
        )
    )
    placed = distributed.by_size(mesh, jax.eval_shape(states))
    states = jax.device_put(states(), placed)
    whole = distributed.replicated(mesh)
    step = distributed.on_mesh(mesh, quick_jit(adversarial(0.1), out_shardings=(*placed, whole), donate_argnums=(0, 1)))
    for i in range(2):
        source, target = (distributed.put_batch(make_batch(seed), mesh) for seed in (i, 10 + i))
        *states, metrics = step(*states, source, target)
    split = [x for x in jax.tree.leaves(states) if not x.is_fully_replicated]
    assert bool(split) == (fsdp > 1)
    parts = [states[0].params, states[0].opt_state, states[0].collections, states[1].params, states[1].opt_state]
    return [
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(part)] or [np.ones(1)]).tolist()
        for part in (*parts, metrics)
    ]


@pytest.fixture(scope="module")
def sharded():
    """Results of two steps on meshes of eight forced devices, by normalisation and mesh."""
    cases = {f"{norm}, {name}": (norm, *MESHES[name]) for norm, names in BY_NORM.items() for name in names}
    return on_devices(8, "test_steps", f"{{k: two_steps(*v) for k, v in {cases}.items()}}")


@pytest.mark.parametrize("norm", BY_NORM)
def test_every_mesh_computes_what_one_device_does(norm, sharded):
    one = two_steps(norm, 1, 1, 1)
    for name in BY_NORM[norm]:
        for part, expected in zip(sharded[f"{norm}, {name}"], one, strict=True):
            error = np.linalg.norm(np.subtract(part, expected)) / np.linalg.norm(expected)
            assert error < 1e-5, (name, error)


def bfloat16_gradient(num_devices, fsdp, spatial, reduce_dtype="float32"):
    """What a bfloat16 step moves the parameters by, as one flat list, and the types that its devices sum in."""
    mesh = distributed.make_mesh(num_devices, fsdp, spatial)
    spec = ModelSpec("resnet18", 5, "live", (1, 1, 1, 1), (16, 16, 32, 64), 16, True, 4, (2, 24), "bfloat16")
    sgd = optimizers.OptimizerSpec("sgd", 1e-2, 100)
    states = jax.jit(lambda: train_states.create_generator(spec, sgd, jax.random.key(0)))()
    placed = distributed.by_size(mesh, states)
    states = jax.device_put(states, placed)
    step = quick_jit(
        functools.partial(steps.supervised_step, preprocessing=IMAGENET, reduce_dtype=reduce_dtype),
        out_shardings=(placed, distributed.replicated(mesh)),
    )
    batch = distributed.put_batch(make_batch(0), mesh)
    text = distributed.on_mesh(mesh, lambda *shapes: step.trace(*shapes).lower(lowering_platforms=("tpu",)))(
        states, batch
    ).as_text()
    summed = re.findall(r"stablehlo\.all_reduce.*?->\s*tensor<(?:\d+x)*(\w+)>", text, re.DOTALL)
    after = distributed.on_mesh(mesh, step)(states, batch)[0].params
    moved = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), after, states.params)
    return np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]).tolist(), summed


def test_devices_sum_bfloat16_gradients_in_float32():
    meshes = [(1, 1, 1), (4, 2, 1), (8, 1, 4), (4, 1, 1, "bfloat16")]
    (one, _), *others = on_devices(8, "test_steps", f"[bfloat16_gradient(*mesh) for mesh in {meshes}]")
    for (*_, last), (moved, summed) in zip(meshes[1:], others, strict=True):
        # Losses and batch statistics are summed in float32 in any case, and pixels are counted.
        assert set(summed) == {"f32", "i32"} | ({"bf16"} if last == "bfloat16" else set())
        # The parts of a sum are rounded to 8 bits as the whole is on one device.
        assert np.linalg.norm(np.subtract(moved, one)) / np.linalg.norm(one) < 2**-7


def sums_of_a_step(fsdp, accumulate_steps):
    """Bytes of all sums over four devices in one compiled step, and of the parameters."""
    mesh = distributed.make_mesh(4, fsdp)
    states = jax.eval_shape(make_states)
    placed = distributed.by_size(mesh, states)
    step = quick_jit(
        functools.partial(adversarial(0.1), accumulate_steps=accumulate_steps),
        out_shardings=(*placed, distributed.replicated(mesh)),
    )
    batches = [distributed.put_batch(make_batch(seed), mesh) for seed in (0, 10)]
    hlo = distributed.on_mesh(mesh, step.lower)(*distributed.placed(states, placed), *batches).compile().as_text()
    found = [x.size for x in compilation.collectives(hlo, 4) if x.kind in ("all-reduce", "reduce-scatter")]
    return sum(found), sum(4 * x.size for state in states for x in jax.tree.leaves(state.params))


def test_devices_sum_gradients_once_a_step():
    cases = [(1, 1), (1, 2), (2, 1)]
    for summed, parameters in on_devices(4, "test_steps", f"[sums_of_a_step(*case) for case in {cases}]"):
        # The sums and counts of the losses are little beside them.
        assert 0.99 * parameters < summed < 1.01 * parameters


def kernel_gradient_of_many_devices():
    """The gradient of a 1x1 kernel that one image moves by 256 and seven images by 1."""
    mesh = distributed.make_mesh(8)
    x = jnp.ones((8, 1, 1, 1), jnp.bfloat16).at[0].set(256)
    gradient = jax.jit(jax.grad(lambda kernel, x: convolution.convolve(x, kernel).astype(jnp.float32).sum()))
    kernel = jax.device_put(jnp.ones((1, 1, 1, 1)), distributed.replicated(mesh))
    return distributed.on_mesh(mesh, gradient)(kernel, jax.device_put(x, distributed.by_batch(mesh, 4))).item()


def test_small_parts_of_a_gradient_survive_the_sum_over_devices():
    # bfloat16 has 256, 258, ...: every 1 is lost in it.
    assert on_devices(8, "test_steps", "kernel_gradient_of_many_devices()") == 263


def test_a_batch_that_devices_cannot_share_is_refused():
    mesh = distributed.make_mesh()
    with pytest.raises(UserError, match=r"config.batch_size=0"):
        distributed.check_batch("config.batch_size", 0, mesh)
    with pytest.raises(UserError, match="num_devices=99"):
        distributed.make_mesh(99)
    with pytest.raises(UserError, match="fsdp=3 times spatial=1 must divide"):
        distributed.make_mesh(1, fsdp=3)


def test_batch_norm_statistics_follow_the_batches():
    generator, _ = make_states("live")
    step = quick_jit(functools.partial(steps.supervised_step, preprocessing=IMAGENET))
    updated, _ = step(generator, make_batch(0))
    before = generator.collections["batch_stats"]["feature_extractor"]["bn1"]
    after = updated.collections["batch_stats"]["feature_extractor"]["bn1"]
    assert float(jnp.abs(after["mean"] - before["mean"]).max()) > 0
    assert float(jnp.abs(after["var"] - before["var"]).max()) > 0
