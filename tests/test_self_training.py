"""Self-training: losses beside PyTorch, thresholds of a million pixels, the prior beside NumPy, and rounds."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch")

import interruptions  # noqa: E402
import parity  # noqa: E402
import systems_networks  # noqa: E402

from fada_jax import config as schema  # noqa: E402
from fada_jax.classes import IGNORE  # noqa: E402
from fada_jax.configs import base  # noqa: E402
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.methods import SYSTEMS, TrainingSpec  # noqa: E402
from fada_jax.models import Outputs  # noqa: E402
from fada_jax.stages import recipe, workdirs  # noqa: E402
from fada_jax.training import selection  # noqa: E402
from fada_jax.training.alternation import View  # noqa: E402

SIZE, CLASSES = (49, 65), 6
GTA5 = "configs/gta5_to_cityscapes.py:size=miniature"
FADA = "configs/gta5_to_cityscapes.py:size=miniature,method=fada"


def domain(seed, images, labelled):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (images, *SIZE)).astype(np.uint8)
    labels[rng.random(labels.shape) > labelled] = IGNORE
    return rng.normal(0, 2, (images, 5, 7, CLASSES)).astype(np.float32), labels


def by_pytorch(parts, temperature, weight, mrkld):
    """The loss of the facts, float64, and its gradient to the logits of each domain."""
    tensors, losses, count = {}, [], sum(int((labels != IGNORE).sum()) for _, labels in parts.values())
    for name, (logits, labels) in parts.items():
        z = tensors[name] = torch.from_numpy(logits).double().permute(0, 3, 1, 2).requires_grad_()
        log_p = torch.log_softmax(
            torch.nn.functional.interpolate(z, SIZE, mode="bilinear", align_corners=True) / temperature, 1
        )
        target, y = name == "target", torch.from_numpy(labels).long()
        total = torch.nn.functional.nll_loss(log_p, y, ignore_index=IGNORE, reduction="sum")
        losses.append((weight if target else 1.0) * total / count)
        if target:
            losses.append(mrkld * -log_p.mean(1)[y != IGNORE].sum() / count)
    sum(losses).backward()
    return sum(losses).item(), {name: z.grad.permute(0, 2, 3, 1).numpy() for name, z in tensors.items()}


@pytest.mark.parametrize(
    ("name", "options", "mrkld"),
    [("st", {}, 0.0), ("cbst", {"lambda_adv": 0.5}, 0.0), ("crst", {}, 0.01), ("crst", {"mrkld": 0.1}, 0.1)],
)
@pytest.mark.parametrize("temperature", [1.0, 1.8])
def test_losses_of_both_domains_are_pytorchs(name, options, mrkld, temperature):
    parts = {"source": domain(0, 2, 0.9), "target": domain(1, 2, 0.2)}
    count = sum(int((labels != IGNORE).sum()) for _, labels in parts.values())
    method = SYSTEMS[name].method(temperature=temperature, **options)

    def ours(logits):
        total = 0.0
        for name, z in logits.items():
            one, labels = jnp.float32(1), jnp.asarray(parts[name][1])
            outputs = Outputs(logits=(z,), features=z)
            view = View(name, outputs, labels, SIZE, 1.0, one * count, one, jnp.int32(0), None, {})
            total += method.losses(view, {}, TrainingSpec(systems_networks.SPEC)).generator
        return total

    value, gradients = jax.value_and_grad(ours)({name: jnp.asarray(z) for name, (z, _) in parts.items()})
    expected, wanted = by_pytorch(parts, temperature, method.lambda_adv, mrkld)
    assert parity.relative(value, expected) < 1e-6
    for name, gradient in wanted.items():
        assert parity.relative(gradients[name], gradient) < 1e-5


def a_million(k=CLASSES):
    """Probabilities of 10^6 pixels, some classes seldom and seldom sure."""
    logits = np.random.default_rng(0).normal(np.linspace(2, -2, k), np.linspace(4, 1, k), (4, 500, 500, k))
    return np.array(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


def ranked(confidences, keep):
    """CBST's threshold by sorting: the confidence at rank floor(keep x pixels), or the largest; 1 for none."""
    order = np.sort(confidences)[::-1]
    return order[max(int(np.floor(keep * len(order))), 1) - 1] if len(order) else np.float32(1)


def thresholds_of(p, **options):
    mask = np.ones(len(p), bool)
    return selection.thresholds(
        selection.Selection(**options), lambda upper: np.asarray(jax.jit(selection.confidence_counts)(p, mask, upper))
    )


@pytest.mark.parametrize("keep", [0.15, 0.2, 0.5, 0.85, 1.0])
def test_thresholds_of_a_million_pixels_are_those_of_sorting(keep):
    p = a_million()
    argmax, confidence = p.argmax(-1).ravel(), p.max(-1).ravel()
    by_class = np.array([ranked(confidence[argmax == c], keep) for c in range(CLASSES)])
    np.testing.assert_array_equal(thresholds_of(p, keep=keep), by_class)
    np.testing.assert_array_equal(
        thresholds_of(p, keep=keep, balanced=False), np.full(CLASSES, ranked(confidence, keep))
    )
    np.testing.assert_array_equal(thresholds_of(p, keep=keep, cap=0.9), np.minimum(by_class, np.float32(0.9)))


def test_thresholds_of_small_and_of_equal_values_are_those_of_sorting():
    """Under a prior values are small; a class that is predicted nowhere has 1, and equal values stay together."""
    p = a_million() * np.linspace(0.5, 1e-4, 500, dtype=np.float32)[:, None, None]
    p[..., 0] = 0
    p[0] = np.float32(0.25)
    argmax, confidence = p.argmax(-1).ravel(), p.max(-1).ravel()
    by_class = np.array([ranked(confidence[argmax == c], 0.3) for c in range(CLASSES)])
    found = thresholds_of(p, keep=0.3)
    np.testing.assert_array_equal(found, by_class)
    q = np.zeros((1, 4, 4, 3), np.float32)
    q[..., 1] = 1
    np.testing.assert_array_equal(thresholds_of(q, keep=0.3), [1, 1, 1])


def test_cbsts_labels_are_its_equations():
    """argmax p_c / lambda_c, kept where the largest is at least 1."""
    p = a_million()
    thresholds = thresholds_of(p, keep=0.2, relative=True)
    labels = np.asarray(selection.select(p, thresholds, relative=True))
    ratio = p.astype(np.float64) / thresholds
    close = np.abs(ratio.max(-1) - 1) < 1e-6
    expected = np.where(ratio.max(-1) >= 1, ratio.argmax(-1), IGNORE)
    np.testing.assert_array_equal(labels[~close], expected[~close])
    assert close.mean() < 1e-3
    # Each class keeps its share at least; those that others would have had gain.
    for c in range(CLASSES):
        assert (labels == c).sum() >= 0.2 * (p.argmax(-1) == c).sum() * 0.5


def test_a_prior_is_the_sources_frequency_at_each_place():
    rng = np.random.default_rng(0)
    labels = [np.where(np.arange(64)[:, None] < 20 + i, 1, rng.integers(0, 3, (64, 96))) for i in range(4)]
    labels = [x.astype(np.uint8) for x in labels]
    labels[0][:, :10] = IGNORE
    prior = selection.spatial_prior(iter(labels), 3)
    shares = np.stack([np.mean([x == c for x in labels], axis=0) for c in range(3)], -1)
    expected = np.stack([ndimage.gaussian_filter(shares[..., c], 70 * 64 / 1024, mode="nearest") for c in range(3)], -1)
    assert prior.dtype == np.float32 and prior.shape == (64, 96, 3)
    np.testing.assert_allclose(prior, expected, atol=1e-6)
    assert prior[2, 50, 1] > 0.99 and prior[60, 50, 1] < 0.5


def test_rounds_follow_one_another_with_growing_shares():
    released = "configs/gta5_to_cityscapes.py:method=cbst"
    stages = recipe.configs(released, {"rounds.number": 9, "rounds.most": 0.4}, Path("/w"))
    assert list(stages) == ["source", *(f"round_{i}" for i in range(1, 10))]
    rounds = list(stages.values())[1:]
    shares = [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.4, 0.4, 0.4]
    np.testing.assert_allclose([config.pseudo_labels.keep for config in rounds], shares)
    for config, before in zip(rounds, stages, strict=False):
        assert config.init_from == config.teacher_from == f"/w/{before}"
        assert (config.stage, config.method) == ("self_training", "cbst")
    st, cbst = (recipe.configs(f"{GTA5},method={name}", {}, Path("/w"))["round_1"] for name in ("st", "cbst"))
    assert not st.pseudo_labels.balanced and not st.pseudo_labels.relative
    assert cbst.pseudo_labels.balanced and cbst.pseudo_labels.relative
    # A share above the limit stays what it is.
    assert selection.Rounds(most=0.5).keep(0.8, 3) == 0.8


def own_recipe(parts, **values):
    config = base.get_config(base.parse("size=miniature"))
    config.recipe = parts
    config.update(values)
    return config


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([{"folder": "a", "stage": "sauce"}], r"config.recipe\[0\].stage='sauce' must be one of source, adaptation"),
        ([{"folder": "a", "stage": "source", "method": "gan"}], r"config.recipe\[0\].method='gan' must be one of fada"),
        ([{"folder": "../a", "stage": "source"}], r"config.recipe\[0\].folder='../a'"),
        ([{"folder": "a", "stage": "source"}] * 2, r"config.recipe\[1\].folder='a' is that of an earlier part"),
        (
            [{"folder": "a", "stage": "adaptation", "init_from": "b"}],
            r"config.recipe\[0\].init_from='b' must be the folder of an earlier part: none before it",
        ),
        ([{"stage": "source"}], r"config.recipe\[0\].folder"),
        ([{"folder": "a", "stage": "source", "steps": 3}], r"config.recipe\[0\].steps"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(parts, problem):
    with pytest.raises(UserError, match=problem):
        schema.read(own_recipe(parts))


@pytest.mark.parametrize(
    ("arguments", "overrides", "problem"),
    [
        ("stage=self_training", {}, "config.stage=self_training: method=fada is trained in stage=adaptation"),
        ("stage=adaptation,method=cbst", {}, "config.stage=adaptation: method=cbst is trained in stage=self_training"),
        (
            "stage=self_training,method=cbst",
            {"lambda_adv": 0.0},
            "config.stage=self_training: method=control is trained in stage=adaptation",
        ),
        ("stage=self_training,method=cbst", {"rounds.number": 0}, "config.rounds.number=0"),
        ("stage=self_training,method=crst", {"options.mrkld": -1.0}, "config.options.mrkld=-1.0"),
    ],
)
def test_a_stage_that_does_not_train_the_method_is_refused(arguments, overrides, problem):
    with pytest.raises(UserError, match=problem):
        schema.load(f"{GTA5},{arguments}", overrides)


OWN = """
from fada_jax.configs import gta5_to_cityscapes

PARTS = [
    {"folder": "start", "stage": "source"},
    {"folder": "aligned", "stage": "adaptation", "method": "binary", "init_from": "start"},
    {"folder": "taught", "stage": "self_training", "method": "crst", "init_from": "aligned", "teacher_from": "aligned",
     "repeated": True},
]


def get_config(arguments=""):
    config = gta5_to_cityscapes.get_config(arguments)
    with config.unlocked():
        config.recipe = PARTS
        config.rounds.number = 2
    return config
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return interruptions.make_data(tmp_path_factory.mktemp("rounds"))


@pytest.mark.timeout(900)
def test_a_recipe_of_ones_own_runs_from_a_config_alone(tmp_path, data_dir, monkeypatch):
    """Alignment, then rounds of self-training from it; the whole is done once, and read again by its last stage."""
    monkeypatch.setattr(interruptions, "STEPS", 4)
    path, workdir = tmp_path / "own.py", tmp_path / "w"
    path.write_text(OWN)
    options = [x for x in interruptions.OPTIONS if "total_steps" not in x]
    command = (
        "scripts/run_recipe.py", f"--config={path}:size=miniature", f"--config.data_dir={data_dir}",
        f"--workdir={workdir}", *options, "--config.total_steps=4", "--config.pseudo_labels.spatial_prior=true",
        "--config.pseudo_labels.keep=0.5",
    )  # fmt: skip
    lines = interruptions.finish(command).lines
    names = ["start", "aligned", "taught_1", "taught_2"]
    assert workdirs.stages_of(workdir) == names
    assert workdirs.stage_workdir(workdir) == workdir / "taught_2"
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == names
    assert any("at most" in line and "MB" in line for line in lines)
    again = interruptions.finish(command).lines
    assert sum("finished, 4 steps" in line for line in again) == 4
    assert json.loads((workdir / "results.json").read_text())["rows"] == rows


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_between_and_inside_rounds_change_no_array(tmp_path, data_dir, monkeypatch):
    interruptions.cache_compiled(tmp_path, monkeypatch.setenv)
    stages = ("source", "round_1", "round_2", "round_3")
    command = [interruptions.recipe_command(data_dir, tmp_path / name, "cbst") for name in ("whole", "killed")]
    interruptions.finish(command[0])
    rng = np.random.default_rng(1)
    fell = interruptions.torment(command[1], tmp_path / "killed", rng, kills=16, stages=stages)
    assert sum(fell.values()) == 16 and set(fell) == set(interruptions.PLACES)
    found = {name: interruptions.differences(tmp_path / "whole" / name, tmp_path / "killed" / name) for name in stages}
    assert found == {name: [] for name in stages}
    files = [(tmp_path / run / "round_2" / "pseudo_labels.tfrecord").read_bytes() for run in ("whole", "killed")]
    assert files[0] == files[1]


def test_a_selection_says_of_new_keys_only_what_is_not_as_before():
    """Labels of earlier versions stay those of now."""
    from fada_jax.stages import labelling

    plain = dataclasses.asdict(selection.Selection(keep=0.5))
    assert labelling._named(selection.Selection(keep=0.5)) == {
        key: plain[key] for key in ("keep", "relative", "multi_scale")
    }
    assert labelling._named(selection.Selection(balanced=False))["balanced"] is False
