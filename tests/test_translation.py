"""Image translators: networks and step beside PyTorch, the pool, meshes, resume, and what loads them and what not."""

import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
from commands import command, command_here, on_devices, one_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_all_systems import flat, placed_step, same
from test_steps import make_batch

from fada_jax import config as schema
from fada_jax import distributed
from fada_jax.configs import base
from fada_jax.errors import UserError
from fada_jax.evaluation import scoring, translation
from fada_jax.evaluation.translators import load_translator
from fada_jax.input_pipeline import conversion
from fada_jax.methods import CycleGan, TrainingSpec, cyclegan, image_pool
from fada_jax.models import ModelSpec, TranslationGenerator, TranslationSpec
from fada_jax.stages import parents, run, workdirs
from fada_jax.training import checkpoints, optimizers
from fada_jax.training.optimizers import OptimizerSpec

# So small a rate, and so small images below, that rounding turns no ReLU on or off.
SGD = OptimizerSpec("sgd", 1e-3, 100)
MESHES = {"data 2": (2, 1, 1), "data 4": (4, 1, 1), "fsdp 2": (4, 2, 1), "spatial 2": (4, 1, 2)}


def two_steps(mesh=(1, 1, 1), dtype="float32", accumulate_steps=1, semantic=0.0, count=2):
    """Every state and the metrics after ``count`` steps, as flat lists by name."""
    mesh = distributed.make_mesh(*mesh)
    model = ModelSpec("resnet18", 5, "group", (1, 1, 1, 1), (8, 8, 8, 8), 8, True, 4, (1, 2), dtype=dtype)
    spec = TrainingSpec(
        model, generator_optimizer=SGD, discriminator_optimizer=SGD, patch_width=8, accumulate_steps=accumulate_steps
    )
    method = CycleGan((32, 24), (24, 32), pool_size=3, width=8, blocks=1, lambda_identity=0.5, lambda_semantic=semantic)
    states = jax.jit(lambda: method.init(jax.random.key(0), spec))()
    states, step = placed_step(
        mesh, states, lambda states, batch: method.step(states, batch, jax.random.key(7), jnp.float32(0), spec)
    )
    for i in range(count):
        source, target = make_batch(i, 4, 24, 32), make_batch(10 + i, 4, 32, 24)
        batch = {"source": source["image"], "target": target["image"]}
        states, metrics = step(states, {k: distributed.put_batch({"image": x}, mesh) for k, x in batch.items()})
    return flat(states, metrics)


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    same(two_steps(), on_devices(2, "test_translation", "two_steps((2, 1, 1))"), 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("semantic", "count"), [(0.0, 2), (1.0, 1)])
def test_every_mesh_computes_what_one_device_does(semantic, count):
    options = f"semantic={semantic}, count={count}"
    sharded = on_devices(4, "test_translation", f"{{k: two_steps(v, {options}) for k, v in {MESHES}.items()}}")
    one = two_steps(semantic=semantic, count=count)
    for name in MESHES:
        same(one, sharded[name], 1e-5)


@pytest.mark.slow
def test_micro_batches_change_nothing_and_bfloat16_little():
    one = two_steps()
    same(one, two_steps(accumulate_steps=2), 1e-5)
    half = two_steps(dtype="bfloat16")
    assert half.keys() == one.keys() and all(np.isfinite(part).all() for part in half.values())
    same({"generator": one["generator"]}, {"generator": half["generator"]}, 0.05)


# Beside PyTorch ------------------------------------------------------------------------------------------------------


def test_networks_beside_pytorch():
    parity = pytest.importorskip("translation_parity")
    rows = parity.measure_networks((0, 1))
    assert not [row for row in rows if not row.ours <= min(row.limit, 3 * row.torch32)], rows


# The identity case moves some weights whose gradient is rounding alone.
@pytest.mark.parametrize(
    "case", ["released", *(pytest.param(x, marks=pytest.mark.slow) for x in ("semantic", "identity"))]
)
def test_three_iterations_beside_pytorch(case):
    parity = pytest.importorskip("translation_parity")
    rows = parity.measure(case)
    # From the second iteration on a loss is one of other weights, too.
    limits = [5e-6 if row.name.endswith(("iteration 2", "iteration 3")) else row.limit for row in rows]
    failed = [row for row, limit in zip(rows, limits, strict=True) if not row.ours <= limit]
    assert not failed, "\n".join(map(str, failed))
    assert sum("update" in row.name for row in rows) == 4 == sum("gradient" in row.name for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["released", "identity", "semantic"])
def test_three_iterations_in_float64(case):
    pytest.importorskip("torch")
    script = [sys.executable, str(Path(__file__).with_name("translation_float64.py")), case]
    output = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    rows = json.loads(output.splitlines()[-1])
    failed = [row for row in rows if not row["ours"] < (1e-9 if "update" in row["name"] else 1e-11)]
    assert rows and not failed, failed


def test_the_pool_of_the_reference_is_full_within_three_iterations():
    """Or the parity above would say nothing of it."""
    parity = pytest.importorskip("translation_parity")
    full = [parity.draws(i)[name][0][j] for i in (1, 2) for name in parity.SIZES for j in (0, 1) if 2 * i + j >= 3]
    assert True in full and False in full


# The pool ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 4), batches=st.lists(st.integers(1, 3), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_pool_is_that_of_plain_python(size, batches, seed):
    rng = np.random.default_rng(seed)
    pool, stored, number = image_pool.empty(size, 1, 1), [], 0
    for count in batches:
        values = np.arange(number, number + count, dtype=np.float32)
        number += count
        exchange, place = rng.random(count) < 0.5, rng.integers(0, size, count)
        draws = image_pool.Draws(jnp.asarray(exchange), jnp.asarray(place, jnp.int32))
        pool, given_back = image_pool.query(
            pool, jnp.broadcast_to(values[:, None, None, None], (count, 1, 1, 3)), draws
        )
        expected = []
        for value, swap, i in zip(values, exchange, place, strict=True):
            if len(stored) < size:
                stored.append(value)
                expected.append(value)
            elif swap:
                expected.append(stored[i])
                stored[i] = value
            else:
                expected.append(value)
        np.testing.assert_array_equal(given_back[:, 0, 0, 0], expected)
        assert int(pool["count"]) == len(stored)
        np.testing.assert_array_equal(pool["images"][: len(stored), 0, 0, 1], stored)


def test_draws_exchange_half_and_reach_every_place():
    draws = image_pool.draw(jax.random.key(0), 4_000, 50)
    assert abs(float(draws.exchange.mean()) - 0.5) < 0.03
    assert set(np.unique(draws.place)) == set(range(50))


# Networks ------------------------------------------------------------------------------------------------------------


def test_a_rate_stays_and_then_falls_linearly():
    rates = [float(optimizers.poly_schedule(2e-4, 9, 1.0, 4)(step)) for step in range(10)]
    np.testing.assert_allclose(rates, [2e-4] * 4 + [2e-4 * (1 - i / 5) for i in range(6)], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("size", [(36, 52), (37, 50), (9, 8)])
def test_whole_images_of_any_size_are_translated(size):
    spec = TranslationSpec(4, 1)
    params = TranslationGenerator(spec).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    made = np.asarray(translation.translate(spec, params, image))
    assert made.shape == image.shape and made.dtype == np.uint8
    more = [(0, -side % 4) for side in size]
    padded = np.pad(image, ((0, 0), *more, (0, 0)), mode="reflect")
    whole = np.asarray(translation.translate(spec, params, padded))
    np.testing.assert_array_equal(made, whole[:, : size[0], : size[1]])


# The stage -----------------------------------------------------------------------------------------------------------


def tiny_config(**values):
    config = base.get_config(base.parse("stage=translation,size=miniature"))
    config.task = "tiny"
    base.miniature(config)
    config.source, config.target, config.eval = (base.stream("x", "x", (48, 32)) for _ in range(3))
    config.options.update(width=4, blocks=1, pool_size=3)
    config.discriminator.patch_width = 4
    config.update(batch_size=2, total_steps=4, checkpoint_every=2, log_every=1)
    config.update_from_flattened_dict(values)
    return schema.read(config)


def batches():
    for i in range(4):
        yield {"source": {"image": make_batch(i, 1)["image"]}, "target": {"image": make_batch(10 + i, 1)["image"]}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished stage of random pictures, and its last states."""
    workdir = tmp_path_factory.mktemp("translation") / "w"
    return workdir, run.train(tiny_config(), workdir, batches=batches(), log=lambda line: None)


def test_resumed_it_ends_bit_for_bit_where_it_would_have(trained, tmp_path):
    _, whole = trained
    with pytest.raises(UserError, match="the input ended after 3 of 4 steps"):
        run.train(tiny_config(), tmp_path / "w", batches=itertools.islice(batches(), 3))
    assert checkpoints.available_steps(tmp_path / "w") == [2]
    resumed = run.train(tiny_config(), tmp_path / "w", batches=batches())
    assert set(resumed) == {"generator", cyclegan.DISCRIMINATORS, cyclegan.POOLS}
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_stage_tells_that_it_holds_translators(trained):
    workdir, states = trained
    translator = load_translator(workdir)
    assert translator.spec == TranslationSpec(4, 1) and translator.step == 4
    assert checkpoints.read_meta(workdir, 4).translator == translator.spec
    for a, b in zip(jax.tree.leaves(states["generator"].params), jax.tree.leaves(translator.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)
    assert translator.digest == dataclasses.replace(translator, step=1).digest
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_adv", "loss_cycle", "loss_d", "grad_norm"} <= log[-1].keys()


HOLDS = "holds image translators, not a segmenter: scripts/translate_dataset.py"


def test_everything_else_refuses_translators(trained, tmp_path):
    workdir, _ = trained
    Image.fromarray(raw_trees.picture(0, 32, 48)).save(tmp_path / "x.png")
    for arguments in (
        ("-m", "fada_jax.evaluate", f"--workdir={workdir}", f"--output={tmp_path}/x.json"),
        ("-m", "fada_jax.predict", f"--workdir={workdir}", f"--out={tmp_path}/p", tmp_path / "x.png"),
        ("-m", "fada_jax.export", f"--workdir={workdir}", f"--output={tmp_path}/e"),
        ("-m", "fada_jax.convert_weights", "export", f"--workdir={workdir}", f"--output={tmp_path}/x.pth"),
    ):  # fmt: skip
        status, _, errors = command_here(*arguments)
        assert status == 1 and HOLDS in one_error(errors), (arguments, errors)
    with pytest.raises(UserError, match=HOLDS):
        scoring.evaluate_stage(workdir)
    with pytest.raises(UserError, match=f"config.init_from: .* {HOLDS}"):
        parents.load_compatible(tiny_config(), str(workdir), "config.init_from")


def test_a_recipe_whose_translators_alone_are_there_has_no_segmenter(trained, tmp_path):
    workdir, _ = trained
    (tmp_path / "translation").symlink_to(workdir)
    with pytest.raises(UserError, match=r"no checkpoint in .* or in a stage folder of"):
        workdirs.stage_workdir(tmp_path)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"eval_every": 2}, "config.eval_every=2: translators have no scores"),
        ({"init_from": "w"}, "config.init_from=w: translators start from random weights"),
        ({"options.lambda_semantic": 1.0}, "config.init_from is empty: config.options.lambda_semantic needs"),
        ({"source.size": (50, 32)}, r"config.source.size, or its crop, is \(50, 32\): .* multiples of 4 pixels"),
        ({"target.size": (48, 16)}, r"config.target.size, or its crop, is \(48, 16\): .* at least 24 pixels"),
        ({"options.blocks": 0}, "config.options.blocks"),
        ({"options.source_size": (8, 8)}, "config.options.source_size is no option of method='cyclegan'"),
        ({"method": "fada"}, "config.stage=translation: method=fada is trained in stage=adaptation"),
        ({"stage": "source"}, "config.stage=source: method=cyclegan is trained in stage=translation"),
        ({"generator_optimizer.constant_steps": 700}, "config.generator_optimizer.constant_steps=700 must be less"),
    ],
)
def test_what_a_translation_stage_has_no_use_for_is_refused(values, problem):
    with pytest.raises((UserError, AttributeError, KeyError), match=problem):
        tiny_config(**values)


def test_a_recipe_of_translators_alone_is_refused(tmp_path):
    own = "from fada_jax.configs import gta5_to_cityscapes\n\n\ndef get_config(arguments=''):\n"
    own += "    config = gta5_to_cityscapes.get_config(arguments)\n    with config.unlocked():\n"
    own += (
        "        config.recipe = [{'folder': 'a', 'stage': 'translation', 'method': 'cyclegan'}]\n    return config\n"
    )
    (tmp_path / "own.py").write_text(own)
    config = f"--config={tmp_path}/own.py:size=miniature"
    status, _, errors = command_here("scripts/run_recipe.py", config, f"--workdir={tmp_path}/w")
    assert status == 1 and "translators have no scores" in one_error(errors)
    assert not (tmp_path / "w").exists()


def test_images_of_another_size_than_the_pools_are_refused(tmp_path):
    config = tiny_config(**{"source.size": (48, 40)})
    with pytest.raises(UserError, match="translations into the target are 48x32, its pool keeps 48x40"):
        run.train(config, tmp_path / "w", batches=batches())


# With data sets ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for dataset in ("gta5", "cityscapes"):
        getattr(raw_trees, dataset)(root / "raw" / dataset)
        conversion.convert(conversion.Conversion(dataset, root / "raw" / dataset), root / "data")
    return root / "data"


def data_config(data_dir, *more, stage="stage=translation"):
    sizes = ("--config.source.size=(64,36)", "--config.target.size=(64,32)", "--config.eval.size=(64,32)")
    return (
        f"--config=configs/gta5_to_cityscapes.py:size=miniature,{stage}", f"--config.data_dir={data_dir}", *sizes, *more
    )  # fmt: skip


NARROW = (
    "--config.options.width=4", "--config.options.blocks=1", "--config.options.pool_size=3",
    "--config.discriminator.patch_width=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def translators(data_dir, tmp_path_factory):
    """A stage of two steps on data sets, trained by the command."""
    workdir = tmp_path_factory.mktemp("stage") / "w"
    output = command(
        "-m", "fada_jax.train", f"--workdir={workdir}",
        *data_config(data_dir, "--config.total_steps=2", "--config.checkpoint_every=1", *NARROW),
    )  # fmt: skip
    assert "translation (cyclegan): steps 0 to 2" in output
    assert "TensorBoard gets no" not in output
    return workdir


@pytest.mark.slow
def test_a_dry_run_prints_both_networks(data_dir):
    output = command("-m", "fada_jax.train", *data_config(data_dir, *NARROW), "--dry_run")
    assert "generator: " in output and f"{cyclegan.DISCRIMINATORS}: " in output


TRANSLATE = "scripts/translate_dataset.py"


@pytest.fixture(scope="module")
def made(data_dir, translators):
    output = command(TRANSLATE, f"--workdir={translators}", f"--data_dir={data_dir}", "--name=gta5_dusk", "--workers=2")
    assert "gta5_dusk: train 6 images in" in output
    return data_dir


def test_a_translated_data_set_is_read_like_its_original(made, translators):
    from fada_jax.input_pipeline import records

    before, now = (records.open_split(made, name, "train") for name in ("gta5", "gta5_dusk"))
    assert records.verify(now.root) == {"train": 6}
    assert now.names.tolist() == before.names.tolist()
    np.testing.assert_array_equal(now.raw_counts(), before.raw_counts())
    assert now.encoding == before.encoding
    translator = load_translator(translators)
    noted = records.description(now.root)
    assert noted.translated.translator == translator.digest and noted.translated.translator_step == 2
    assert (noted.translated.size, noted.translated.images) == ((64, 36), ("gta5", "", "train"))
    from fada_jax.input_pipeline import decoding

    for i in range(6):
        old, new = before.read(i), now.read(i)
        assert new["label"] == old["label"] and new["size"] == old["size"]
        image = np.asarray(decoding.stored_image(old))[None]
        expected = translation.translate(translator.spec, translator.params["to_target"], image)[0]
        # The command compiles without optimisation.
        difference = np.abs(np.asarray(decoding.stored_image(new), int) - np.asarray(expected, int))
        assert difference.max() <= 1


@pytest.mark.slow
def test_any_method_trains_on_translated_images(made, tmp_path):
    for stage in ("stage=source", "stage=adaptation,method=cycada"):
        command(
            "-m", "fada_jax.train", *data_config(made, "--config.source.dataset=gta5_dusk", "--config.total_steps=1",
            "--config.batch_size=2", stage=stage), f"--workdir={tmp_path}/{stage[-6:]}",
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["cycada", "cyclegan"])
def test_cycada_is_one_command(data_dir, tmp_path, method):
    """Translators, a source model on translated images, and the features: the second call does nothing again."""
    workdir = tmp_path / "w"
    flags = data_config(data_dir, "--config.total_steps=2", "--config.checkpoint_every=2", stage=f"method={method}")
    arguments = ("scripts/run_recipe.py", f"--workdir={workdir}", *flags)
    first, again = command(*arguments), command(*arguments)
    stages = ["translation", "source", *(["adaptation"] if method == "cycada" else [])]
    done = re.compile(r"translated \d+ images of gta5/train with step 2: ")
    assert done.search(first) and not done.search(again)
    assert json.loads((workdir / "recipe.json").read_text()) == {"stages": stages}
    assert (workdir / "translation" / "data" / "gta5_translated").is_dir()
    for stage in stages[1:]:
        config = json.loads((workdir / stage / "config.json").read_text())
        assert config["source"]["dataset"] == "gta5_translated" and config["method"] != "cyclegan"
    assert workdirs.stage_workdir(workdir) == workdir / stages[-1]
    rows = [row["name"] for row in json.loads((workdir / "results.json").read_text())["rows"]]
    assert rows == ["source_only", "colour_matching", *(["adapted"] if method == "cycada" else [])]
    # Other translators than those that painted the data set are noticed.
    note = next((workdir / "translation" / "data").rglob("conversion.json"))
    values = json.loads(note.read_text())
    values["translated"]["translator"] = "0" * 64
    note.write_text(json.dumps(values))
    status, _, errors = command_here(*arguments)
    assert status == 1 and "holds translations of other weights than" in one_error(errors)


def test_a_smaller_translator_and_another_encoding(made, translators):
    from fada_jax.input_pipeline import decoding, records

    arguments = (f"--workdir={translators}", f"--data_dir={made}", "--size=32x20", "--encoding=tiff", "--batch_size=4")
    command(TRANSLATE, *arguments, "--name=small", "--checkpoint=1")
    before, now = (records.open_split(made, name, "train") for name in ("gta5", "small"))
    assert records.description(now.root).encoding == "tiff" and records.verify(now.root) == {"train": 6}
    assert records.description(now.root).translated.translator_step == 1
    for i in (0, 5):
        old, new = before.read(i), now.read(i)
        np.testing.assert_array_equal(decoding.stored_label(old), decoding.stored_label(new))
        assert decoding.stored_image(new).size == (64, 36)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--name=gta5_dusk",), "gta5_dusk/1.0.0 is there already"),
        (("--name=gta5",), "--name=gta5: name the new data set in small letters"),
        (("--name=../x",), "--name=../x: name the new data set"),
        (("--name=y", "--split=night"), "has no split 'night': one of train"),
        (("--name=y", "--dataset=nowhere"), "nowhere/1.0.0 is not there"),
        (("--name=y", "--checkpoint=7"), "checkpoint '7' is not in"),
        (("--name=y", "--size=4x4"), "--size=4x4: must be WIDTHxHEIGHT of at least 8 pixels"),
    ],
)
def test_what_cannot_be_translated_is_refused(arguments, problem, made, translators):
    status, _, errors = command_here(TRANSLATE, f"--workdir={translators}", f"--data_dir={made}", *arguments)
    assert status == 1 and problem in one_error(errors)
    assert not (made / "y").exists()


@pytest.mark.slow
def test_unfinished_translators_and_segmenters_are_refused(made, translators, tmp_path):
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "checkpoints" / "1").symlink_to(translators / "checkpoints" / "1")
    arguments = (f"--data_dir={made}", "--name=y")
    status, _, errors = command_here(TRANSLATE, f"--workdir={unfinished}", *arguments)
    assert status == 1 and "has come to step 1 of 2" in one_error(errors)
    config = data_config(made, "--config.total_steps=1", "--config.batch_size=2", stage="stage=source")
    command("-m", "fada_jax.train", *config, f"--workdir={tmp_path}/segmenter")
    status, _, errors = command_here(TRANSLATE, f"--workdir={tmp_path}/segmenter", *arguments)
    assert status == 1 and "holds a segmenter, not image translators" in one_error(errors)
    # It is the model of a semantic loss, which keeps its weights.
    semantic = (
        "--config.total_steps=2", *NARROW, "--config.options.lambda_semantic=1.0",
        f"--config.init_from={tmp_path}/segmenter",
    )  # fmt: skip
    command("-m", "fada_jax.train", *data_config(made, *semantic), f"--workdir={tmp_path}/semantic")
    meta = checkpoints.read_meta(tmp_path / "semantic", 2)
    model = checkpoints.load_model(tmp_path / "segmenter")
    assert meta.parents["init_from"].digest == model.digest


def test_an_interrupted_translation_leaves_nothing(made, translators):
    from fada_jax.input_pipeline import translated

    translator = load_translator(translators)
    request = translated.Translation("gta5", "train", "broken", (64, 36), translator.digest, 2)

    def two(images):
        yield from itertools.islice(images, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translated.write(request, made, two, conversion._no_progress)
    assert not (made / "broken").exists()
    # Too few translations are no data set.
    with pytest.raises(UserError, match="2 records of train were written, 6 expected"):
        translated.write(request, made, lambda images: itertools.islice(images, 2), conversion._no_progress)
    assert not (made / "broken").exists()
    assert functools.reduce(lambda a, b: a and b.name != "broken", made.iterdir(), True)
