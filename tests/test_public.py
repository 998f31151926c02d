"""The public interface: every source of a segmenter, every option, the documented examples, the exported artifact."""

import dataclasses
import doctest
import json
import os
import re
import subprocess
import sys
import venv

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import ROOT, WITHOUT_EXTRAS, environment
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

import fada_jax
from fada_jax import config as schema
from fada_jax import convert_weights
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.evaluation import predictor
from fada_jax.interop import exporting, pillow_resize, safetensors_files, stablehlo
from fada_jax.training import checkpoints, optimizers, saving
from fada_jax.training import states as train_states

TINY = {
    "total_steps": 2, "batch_size": 4, "checkpoint_every": 1, "log_every": 1, "eval.size": (64, 32),
    "model.widths": (8, 8, 16, 16), "model.stem_width": 8, "model.aspp_rates": (1, 2), "discriminator.widths": (8, 8),
    "multi_scale": (0.7, 1.0),
}  # fmt: skip
SIZES = ((45, 77), (32, 64), (100, 50), (33, 20), (8, 130), (64, 64), (31, 63), (90, 160), (200, 30), (57, 91))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiny_config(arguments, **values):
    config = gta5_to_cityscapes.get_config(f"size=miniature,{arguments}")
    config.update_from_flattened_dict({**TINY, **values})
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir made of random weights, by way of a weight file of ours."""
    folder = tmp_path_factory.mktemp("public")
    config = schema.read(tiny_config("stage=source"))
    spec = config.model
    shapes = jax.eval_shape(
        lambda: train_states.create_generator(spec, optimizers.OptimizerSpec(), jax.random.key(0))
    ).params
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 1.5 / np.sqrt(x.size / x.shape[-1]), x.shape), shapes)
    flat = traverse_util.flatten_dict({"params": params}, sep=".")
    meta = saving.make_meta(config.plain(), spec, config.preprocessing, config.classes)
    safetensors.numpy.save_file(
        {key: value.astype(np.float32) for key, value in flat.items()},
        folder / "model.safetensors",
        {safetensors_files.METADATA: json.dumps(dataclasses.replace(meta, checkpoint_step=0).plain())},
    )
    convert_weights.import_file(str(folder / "model.safetensors"), str(folder / "source"))
    return folder / "source"


@pytest.fixture(scope="module")
def live(workdir):
    return fada_jax.load(workdir)


@pytest.fixture(scope="module")
def artifact(workdir, tmp_path_factory):
    return stablehlo.export_model(checkpoints.load_model(workdir), tmp_path_factory.mktemp("artifact") / "model")


def run_examples(workdir, tmp_path, first_heading, last_heading):
    """Runs the examples of docs/interface.md from one heading to another, after those on top that name things."""
    image = picture(45, 77)
    Image.fromarray(image).save(tmp_path / "x.png")
    names = {
        "fada_jax": fada_jax, "workdir": str(workdir), "new_workdir": tmp_path / "adapted", "image": image,
        "path": tmp_path / "x.png", "images": np.stack([picture(32, 64, i) for i in range(2)]),
        "label_maps": np.zeros((2, 32, 64), np.uint8),
        "settings": tiny_config("stage=adaptation", init_from=str(workdir)).to_dict(),
    }  # fmt: skip
    page = (ROOT / "docs" / "interface.md").read_text()
    text = page[page.index(first_heading) : page.index(last_heading)]
    examples = doctest.DocTestParser().get_doctest(text, names, "interface.md", None, 0)
    return doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(examples)


def test_the_documented_examples_run(workdir, tmp_path):
    result = run_examples(workdir, tmp_path, "# Library interface", "## Train a stage")
    assert result.attempted > 10 and not result.failed


@pytest.mark.slow
def test_the_documented_training_runs(workdir, tmp_path):
    result = run_examples(workdir, tmp_path, "## Train a stage", "## Reference")
    assert result.attempted > 5 and not result.failed
    logged = [json.loads(line) for line in (tmp_path / "adapted" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2] and "loss_adv" in logged[0]


def test_importing_the_package_is_light_and_names_what_is_public():
    code = (
        "import sys, fada_jax; assert 'jax' not in sys.modules; fada_jax.load;"
        "assert not {'tensorflow', 'torch', 'orbax.export'} & set(sys.modules); print(*fada_jax.__all__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.split() == sorted(fada_jax.__all__), result.stderr
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        _ = fada_jax.segment


def python(code):
    """Standard output of a process that runs the code after a base install."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS + code], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_loading_and_predicting_need_no_extra(workdir, artifact, tmp_path):
    Image.fromarray(picture(45, 77)).save(tmp_path / "x.png")
    for path in (workdir, artifact):
        arguments = ["predict", f"--workdir={path}", f"--out={tmp_path / path.name}", str(tmp_path / "x.png")]
        python(f"import runpy; sys.argv = {arguments}; runpy.run_module('fada_jax.predict', run_name='__main__')\n")
    labels = [np.asarray(Image.open(tmp_path / path.name / "x_label.png")) for path in (workdir, artifact)]
    assert labels[0].shape == (45, 77) and np.mean(labels[0] == labels[1]) > 0.99
    code = "import fada_jax\ntry:\n    fada_jax.train_stage\nexcept fada_jax.UserError as error:\n    print(error)\n"
    assert re.fullmatch(
        r"fada_jax.train_stage: (\w+) is not installed: pip install 'fada-jax\[train\]'\n", python(code)
    )


def test_every_source_gives_the_same_segmenter(workdir, live, artifact, tmp_path):
    image = picture(45, 77)
    expected = live.probabilities(image)
    exporting.export_file(workdir, tmp_path / "model.safetensors")
    for path in (workdir / "checkpoints" / "0", tmp_path / "model.safetensors", artifact):
        other = fada_jax.load(path)
        assert (other.step, other.class_set, other.input_size) == (0, live.class_set, (64, 32))
        np.testing.assert_allclose(other.probabilities(image), expected, atol=1e-5)
    with pytest.raises(UserError, match="checkpoint '1' is not in"):
        fada_jax.load(workdir, checkpoint="1")


def test_what_is_no_image_or_no_model_is_refused(live, workdir, tmp_path):
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="images must be uint8 RGB"):
            live(wrong)
    with pytest.raises(ValueError, match="overlap"):
        live(picture(8, 8), tile=(4, 4), overlap=0.95)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no whole artifact of fada_jax\.export: weights\.npz is missing"):
        fada_jax.load(tmp_path)
    with pytest.raises(UserError, match="is there already"):
        stablehlo.export_model(checkpoints.load_model(workdir), tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50),
    st.floats(0, 0.9), st.integers(0, 1000),
)  # fmt: skip
def test_windows_of_a_pointwise_network_change_nothing(height, width, tile_height, tile_width, overlap, seed):
    image = picture(height, width, seed)
    largest = 0

    def run(window):
        nonlocal largest
        largest = max(largest, window.size)
        x = window.astype(np.float32) / 255
        return np.concatenate([x, 3 - x.sum(-1, keepdims=True)], -1) / 3

    strips = list(predictor.tiled_strips(run, image, (tile_width, tile_height), overlap))
    np.testing.assert_allclose(np.vstack(strips), run(image[None])[0], atol=1e-6)
    assert max(len(strip) for strip in strips) <= tile_height


def test_one_window_is_the_plain_image_and_a_batch_is_its_images(live):
    batch = np.stack([picture(45, 77, i) for i in range(2)])
    whole = live.probabilities(batch)
    # Windows run one by one: another batch size sums in another order.
    one_by_one = np.stack([live.probabilities(image) for image in batch])
    np.testing.assert_allclose(live.probabilities(batch, tile=(200, 200)), one_by_one, atol=1e-6)
    np.testing.assert_allclose(one_by_one, whole, atol=1e-5)
    np.testing.assert_array_equal(live(batch, tile=(40, 30)), live.probabilities(batch, tile=(40, 30)).argmax(-1))


def test_scores_are_those_of_scikit_learn(live):
    rng = np.random.default_rng(1)
    samples = [(picture(20, 30, i), rng.integers(0, 19, (20, 30), dtype=np.uint8)) for i in range(3)]
    scores = live.score(samples)
    predicted = np.stack([live(image) for image, _ in samples]).ravel()
    truth = np.stack([label for _, label in samples]).ravel()
    expected = jaccard_score(truth, predicted, average=None, labels=range(19))
    np.testing.assert_allclose(list(scores["iou"].values()), 100 * expected)
    counts = confusion_matrix(truth, predicted, labels=range(19))
    assert scores["accuracy"] == pytest.approx(100 * np.trace(counts) / counts.sum())
    with pytest.raises(ValueError, match="differ in size"):
        live.score([(picture(20, 30), np.zeros((21, 30), np.uint8))])


# Growing, shrinking, both; from 13 on Pillow begins with the rows of the last two.
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(20, 11, (64, 32)), (45, 77, (32, 16)), (90, 12, (64, 32)), (100, 50, (30, 19))],
)
def test_the_exported_resize_is_pillows_bit_for_bit(height, width, size):
    image = picture(height, width)
    with jax.enable_x64(True):
        got = jax.jit(pillow_resize.resize_like_pillow, static_argnums=1)(image[None], size)[0]
    np.testing.assert_array_equal(got, Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def test_the_artifact_describes_itself(artifact):
    card = (artifact / "README.md").read_text()
    assert "| 18 | bicycle |" in card and "| source (labelled) | gta5/train |" in card
    assert json.loads((artifact / "model.json").read_text())["class_set"]["names"][0] == "road"


@pytest.mark.slow
def test_the_artifact_agrees_with_the_live_model_on_ten_sizes(live, artifact):
    exported = fada_jax.load(artifact)
    for i, (height, width) in enumerate(SIZES):
        image = picture(height, width, i)
        np.testing.assert_allclose(exported.probabilities(image), live.probabilities(image), atol=1e-5)
    batch = np.stack([image, image[::-1]])
    np.testing.assert_allclose(
        exported.probabilities(batch, multi_scale=True), live.probabilities(batch, multi_scale=True), atol=1e-5
    )
    np.testing.assert_allclose(exported.features(batch), live.features(batch), atol=1e-4)


@pytest.mark.slow
def test_the_artifact_runs_with_jax_alone(live, artifact, tmp_path):
    """The lines of the model card, in an environment that holds jax and flatbuffers and nothing of ours."""
    image = picture(45, 77)
    np.save(tmp_path / "image.npy", image[None])
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "jax", "flatbuffers"]
    subprocess.run(install, check=True, env=clean)
    card = (artifact / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    check = (
        "import importlib.util as u\n"
        "assert not any(map(u.find_spec, ('fada_jax', 'flax', 'PIL', 'tensorflow', 'torch')))\n"
    )
    script = f"{check}import numpy as np\nimages = np.load({str(tmp_path / 'image.npy')!r})\n{code}"
    script += f"np.save({str(tmp_path / 'p.npy')!r}, p)\n"
    subprocess.run([python, "-c", script], check=True, cwd=artifact, env=clean)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy")[0], live.probabilities(image), atol=1e-5)


@pytest.mark.slow
def test_the_saved_model_agrees_with_the_live_model(live, workdir, tmp_path):
    """TensorFlow runs in a process of its own, without jax."""
    output = stablehlo.export_model(checkpoints.load_model(workdir), tmp_path / "model", tensorflow=True)
    images = np.stack([picture(45, 77, i) for i in range(2)])
    np.save(tmp_path / "images.npy", images)
    code = (
        "import numpy as np, tensorflow as tf\n"
        f"model = tf.saved_model.load({str(output / 'tensorflow')!r})\n"
        f"np.save({str(tmp_path / 'p.npy')!r}, model.probabilities(np.load({str(tmp_path / 'images.npy')!r})))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), live.probabilities(images), atol=1e-5)


def test_a_checkpoint_is_chosen_in_workdirs_alone(artifact):
    with pytest.raises(UserError, match="holds one model alone"):
        fada_jax.load(artifact, checkpoint="900")


def test_a_label_that_is_no_class_is_not_scored(workdir):
    segment, image = fada_jax.load(workdir), picture(16, 32)
    with pytest.raises(ValueError, match="the label of sample 0 holds 19, which is no class of cityscapes19"):
        segment.score([(image, np.full((16, 32), 19, np.uint8))])
