"""Ensembles against NumPy's mean of the single networks' probabilities; and what cannot be averaged is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import raw_trees
from commands import ROOT, command_here, one_error
from test_steps import SPEC

from fada_jax import config as schema
from fada_jax import distributed
from fada_jax.classes import get_class_set
from fada_jax.errors import UserError
from fada_jax.evaluation import ensembles, inference, metrics, scoring
from fada_jax.input_pipeline import conversion, streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.models import Segmenter
from fada_jax.preprocessing import CAFFE, IMAGENET
from fada_jax.training import checkpoints

CITYSCAPES = get_class_set("cityscapes19")
CONFIG = str(ROOT / "configs" / "gta5_to_cityscapes.py") + ":size=miniature"


def model(seed, size=(48, 32), preprocessing=IMAGENET, **config):
    """A network with random weights, large enough that its softmax is no flat one; narrower where it sees less."""
    spec = dataclasses.replace(SPEC, num_classes=19, widths=(8, 8, 16, 16) if size == (48, 32) else (8, 8, 8, 8))
    shapes = jax.eval_shape(Segmenter(spec).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    stored = schema.load(CONFIG, {}).plain()
    stored["eval"] |= {"dataset": "gta5", "split": "train", "size": size} | config.pop("eval", {})
    stored |= {"eval_batch_size": 4, "multi_scale": (0.7, 1.0)} | config
    return checkpoints.Model(spec, preprocessing, CITYSCAPES, params, {}, stored, 7 + seed)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("ensembles")
    raw_trees.gta5(root / "raw", 6)
    conversion.convert(conversion.Conversion("gta5", root / "raw"), root)
    return str(root)


@pytest.fixture
def stored(monkeypatch, data_dir):
    """Models by the name of their workdir."""
    models = {
        "a": model(1),
        "b": model(2),
        "small": model(3, (36, 24), CAFFE, multi_scale=(1.0, 1.3)),
    }
    models = {name: dataclasses.replace(m, config={**m.config, "data_dir": data_dir}) for name, m in models.items()}
    monkeypatch.setattr(checkpoints, "load_model", lambda workdir, checkpoint="last": models[Path(workdir).name])
    return models


def by_hand(models, data_dir, multi_scale):
    """Confusion of the mean probabilities: one image and one network at a time, averaged by NumPy in float64."""
    confusion = np.zeros((19, 19), np.int64)
    found = [
        streams.eval_batches(
            data_dir, Stream("gta5", "train", m.config["eval"]["size"]), class_set=CITYSCAPES, batch_size=1
        )
        for m in models
    ]
    for batches in zip(*found, strict=True):
        label, total = batches[0]["label"], []
        for m, batch in zip(models, batches, strict=True):
            total.append(
                np.asarray(
                    inference.class_probabilities(
                        Segmenter(m.spec).apply, m.variables, batch["image"], preprocessing=m.preprocessing,
                        size=label.shape[1:3], flip=multi_scale,
                        scales=tuple(m.config["multi_scale"]) if multi_scale else inference.SINGLE_SCALE,
                    ),
                    np.float64,
                )
            )  # fmt: skip
        predicted = np.mean(total, 0).argmax(-1)
        valid = label < 19
        np.add.at(confusion, (label[valid], predicted[valid]), 1)
    return confusion


@pytest.mark.parametrize("multi_scale", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_scores_are_those_of_numpys_mean(stored, data_dir, multi_scale):
    """Networks of other widths, input sizes, normalisation and scales; six images in batches of four."""
    names = ["a", "b", "small"]
    steps = []
    result = ensembles.evaluate_stages(
        [Path(n) for n in names], multi_scale=multi_scale, progress=lambda done, total: steps.append((done, total))
    )
    wanted = by_hand(list(stored.values()), data_dir, multi_scale)
    # A pixel whose two best classes differ in the last bits may go either way.
    assert np.abs(wanted - result["confusion"]).sum() <= 2e-4 * wanted.sum()
    assert result["miou"] == pytest.approx(metrics.scores(wanted, CITYSCAPES)["miou"], abs=0.01)
    assert result["num_images"] == 6 and steps[-1] == (6, 6)
    single = scoring.evaluate_stage("a", multi_scale=multi_scale)
    assert np.abs(wanted - single["confusion"]).sum() > 0.01 * wanted.sum()
    assert result.keys() - {"models"} == single.keys() - {"checkpoint_step"}
    assert [(m["workdir"], m["checkpoint_step"]) for m in result["models"]] == [("a", 8), ("b", 9), ("small", 10)]
    assert [m["digest"] for m in result["models"]] == [m.digest for m in stored.values()]


def test_probabilities_are_numpys_mean_and_compiled_once():
    models = [model(1), model(2), model(3, (36, 24), CAFFE)]
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8),
        "image1": rng.integers(0, 256, (2, 24, 36, 3), dtype=np.uint8),
    }
    members = [
        inference.Member(m.spec, m.preprocessing, (1.0,), key)
        for m, key in zip(models, ("image", "image", "image1"), strict=True)
    ]
    variables = [m.variables for m in models]
    got = inference.ensemble_probabilities(members, variables, batch, size=(40, 60), flip=False)
    single = [
        inference.class_probabilities(
            Segmenter(m.spec).apply, m.variables, batch[member.image], preprocessing=m.preprocessing, size=(40, 60)
        )
        for m, member in zip(models, members, strict=True)
    ]
    np.testing.assert_allclose(got, np.mean(np.asarray(single, np.float64), 0), atol=2e-7)
    assert np.abs(single[0] - got).max() > 0.1
    # The same networks find what was compiled for them.
    mesh = distributed.make_mesh()
    assert ensembles.compiled_step(tuple(members), False, mesh) is ensembles.compiled_step(tuple(members), False, mesh)


def test_batches_of_one_size_are_compiled_once(stored, monkeypatch):
    traced = []
    step = inference.ensemble_step

    def counted(*arguments, **options):
        traced.append(1)
        return step(*arguments, **options)

    monkeypatch.setattr(inference, "ensemble_step", counted)
    ensembles.compiled_step.cache_clear()
    assert ensembles.evaluate_stages([Path("a"), Path("small")])["num_images"] == 6
    assert len(traced) == 1
    ensembles.compiled_step.cache_clear()


def test_a_model_with_itself_is_the_model(stored):
    twice, once = ensembles.evaluate_stages([Path("a")] * 2), scoring.evaluate_stage("a")
    assert twice["confusion"] == once["confusion"] and twice["miou"] == once["miou"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_set": get_class_set("camvid11")}, "other has another class set, 'camvid11', than a, 'cityscapes19'"),
        ({"class_set": None}, "other: these weights have no classifier"),
        ({"eval": {"dataset": "cityscapes"}}, "another dataset, 'cityscapes', than a, 'gta5'"),
        ({"eval": {"split": "val"}}, "another split, 'val', than a, 'train'"),
        ({"eval": {"city": "Rome"}}, "another city, 'Rome', than a, ''"),
        ({"data_dir": "/elsewhere"}, "data_dir (--data_dir names one for all), '/elsewhere', than a"),
    ],
)
def test_what_does_not_fit_is_refused(stored, data_dir, change, message):
    if "class_set" in change:
        stored["other"] = dataclasses.replace(stored["b"], **change)
    else:
        stored["other"] = model(4, **{"data_dir": data_dir, **change})
    with pytest.raises(UserError) as error:
        ensembles.evaluate_stages([Path("a"), Path("other")])
    assert message in str(error.value)
    # One place of the data for all, and one split, may be named.
    named = {"data_dir": data_dir, "dataset": "gta5", "split": "train"}
    if "class_set" not in change and "city" not in change.get("eval", {}):
        assert ensembles.evaluate_stages([Path("a"), Path("other")], **named)["num_images"] == 6


def test_the_command_names_every_model(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("fada_jax.stages.workdirs.stage_workdir", lambda path: Path(path))
    run = (
        "-m",
        "fada_jax.evaluate",
        f"--workdir={tmp_path / 'a'}",
        f"--ensemble={tmp_path / 'b'},{tmp_path / 'small'}",
    )
    status, out, errors = command_here(*run)
    assert status == 0 and "step 8, 9, 10, 6 images of gta5/train" in out, errors
    written = json.loads((tmp_path / "a" / "ensemble.json").read_text())
    assert [Path(m["workdir"]).name for m in written["models"]] == ["a", "b", "small"]
    assert not (tmp_path / "a" / "evaluation.json").exists()
    for wrong in ("--checkpoint=best", "--colour_matching=image"):
        status, _, errors = command_here(*run, wrong)
        assert status == 1 and "--ensemble scores last checkpoints as they are" in one_error(errors)
