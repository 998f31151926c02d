"""CDA: its loss beside PyTorch, its easy tasks where the answers are known, their file, and a stage of it."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
import tensorflow as tf
from PIL import Image

torch = pytest.importorskip("torch")

import interruptions  # noqa: E402
import parity  # noqa: E402
import systems_networks  # noqa: E402

from fada_jax import config as schema  # noqa: E402
from fada_jax.classes import IGNORE, get_class_set  # noqa: E402
from fada_jax.configs import gta5_to_cityscapes  # noqa: E402
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.input_pipeline import conversion, pseudo_labels, streams  # noqa: E402
from fada_jax.input_pipeline.augmentation import Augment  # noqa: E402
from fada_jax.input_pipeline.pseudo_labels import Estimates, PseudoLabels  # noqa: E402
from fada_jax.input_pipeline.stream import Stream  # noqa: E402
from fada_jax.methods import SYSTEMS, TrainingSpec, cda  # noqa: E402
from fada_jax.models import Outputs  # noqa: E402
from fada_jax.stages import data, program, recipe, run  # noqa: E402
from fada_jax.training import checkpoints, curriculum  # noqa: E402
from fada_jax.training.alternation import View  # noqa: E402

SIZE, K = (49, 65), 6
CITYSCAPES = get_class_set("cityscapes19")

# ---- Loss


def estimates(seed, images, landmarks=14):
    """Answers of easy tasks: blocks of landmarks with holes, one of which has no class and one no pixel."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, landmarks - 1, (images, 7, 13))
    numbers = np.kron(blocks, np.ones((1, 7, 5), int)).astype(np.uint8)
    numbers[rng.random(numbers.shape) < 0.2] = IGNORE
    classes = np.full((images, 255), IGNORE, np.uint8)
    classes[:, :landmarks] = rng.integers(0, K, (images, landmarks))
    classes[0, 3] = IGNORE
    shares = rng.dirichlet(np.ones(K), images).astype(np.float32)
    return {"distribution": shares, "landmark": numbers, "landmark_class": classes}


def logits_of(seed, images, spread=3):
    return np.random.default_rng(seed).normal(0, spread, (images, 5, 7, K)).astype(np.float32)


def of_pixels(r):
    """The distribution of pixels [K, M]."""
    q = r.mean(1)
    return q / q.sum()


def by_pytorch(logits, labels, known, temperature, gamma, power, weight):
    """The loss of the facts, float64, and its gradient to the logits of source and target."""
    tensors = {name: torch.from_numpy(z).double().permute(0, 3, 1, 2).requires_grad_() for name, z in logits.items()}
    p = {
        name: torch.softmax(
            torch.nn.functional.interpolate(z, SIZE, mode="bilinear", align_corners=True) / temperature, 1
        )
        for name, z in tensors.items()
    }
    y = torch.from_numpy(labels).long()
    loss = gamma * torch.nn.functional.nll_loss(p["source"].log(), y, ignore_index=IGNORE)
    r = (p["target"] / p["target"].amax(1, keepdim=True)) ** power
    for image, d, numbers, classes in zip(r, *known.values(), strict=True):
        of_image = -(torch.from_numpy(d).double() * of_pixels(image.flatten(1)).log()).sum()
        inside = {s: torch.from_numpy(numbers == s) for s in range(255) if classes[s] != IGNORE}
        of_landmarks = [-of_pixels(image[:, m])[classes[s]].log() for s, m in inside.items() if m.any()]
        loss = loss + weight * (1 - gamma) * (of_image + sum(of_landmarks) / len(of_landmarks)) / len(r)
    loss.backward()
    return loss.item(), {name: z.grad.permute(0, 2, 3, 1).numpy() for name, z in tensors.items()}


@pytest.mark.parametrize(
    ("temperature", "options"),
    [(1.0, {}), (1.8, {"power": 5.0}), (1.8, {"gamma": 0.3, "lambda_adv": 0.7})],
)
def test_the_loss_and_its_gradient_are_pytorchs(temperature, options):
    method = SYSTEMS["cda"].method(temperature=temperature, **options)
    logits, known = {"source": logits_of(0, 2), "target": logits_of(1, 2)}, estimates(2, 2)
    labels = np.random.default_rng(3).integers(0, K, (2, *SIZE)).astype(np.uint8)
    labels[:, :9] = IGNORE
    counted, zero = jnp.float32((labels != IGNORE).sum()), jnp.float32(0)

    def ours(logits):
        total = 0.0
        for name, z in logits.items():
            outputs, target = Outputs(features=z, logits=(z,)), name == "target"
            of_view = (None, jax.tree.map(jnp.asarray, known)) if target else (jnp.asarray(labels), {})
            view = View(name, outputs, of_view[0], SIZE, 1.0, counted, zero, jnp.int32(0), None, {}, of_view[1])
            total += method.losses(view, {}, TrainingSpec(systems_networks.SPEC)).generator
        return total

    value, gradients = jax.jit(jax.value_and_grad(ours))({name: jnp.asarray(z) for name, z in logits.items()})
    expected, wanted = by_pytorch(logits, labels, known, temperature, method.gamma, method.power, method.lambda_adv)
    assert parity.relative(value, expected) < 1e-6
    for name, gradient in wanted.items():
        assert parity.relative(gradients[name], gradient) < 1e-5


def test_sure_networks_and_images_without_landmarks_have_finite_gradients():
    """At the power of 6 the share of an unlikely class is below what float32 holds, and its gradient is not."""
    method, known = SYSTEMS["cda"].method(), estimates(0, 2)
    known["landmark_class"][1] = IGNORE
    known = jax.tree.map(jnp.asarray, known)
    z = jnp.asarray(logits_of(1, 2)).at[..., 0].add(60)

    def total(z):
        losses = method.target_losses(z, SIZE, known)
        return sum(losses), losses[1]

    (loss, of_landmarks), gradient = jax.value_and_grad(total, has_aux=True)(z)
    assert np.isfinite(loss) and loss > 100 and np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    losses, present = cda.landmark_losses(jnp.zeros((2, *SIZE, K)), known["landmark"], known["landmark_class"])
    assert not present[1].any() and not losses[1].any() and of_landmarks > 0
    np.testing.assert_allclose(losses[0][present[0]], np.log(K), rtol=1e-6)
    assert not present[0, 3] and not present[0, 13] and present[0].sum() == 12


# ---- Easy tasks


def test_predicted_distributions_beat_the_mean_of_the_source():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 24))

    def domain(count, noise):
        shares = rng.dirichlet(np.full(4, 0.5), count)
        return shares @ mixing + noise * rng.normal(size=(count, 24)), shares

    (x, shares), (other, wanted) = domain(100, 0.05), domain(50, 0.1)
    shares = np.column_stack([shares[:, :2], np.zeros(100), shares[:, 2:]])  # A class that the source does not have.
    wanted = np.column_stack([wanted[:, :2], np.zeros(50), wanted[:, 2:]])
    found = curriculum.fit_distributions(x, shares)(other)
    assert found.dtype == np.float32 and found.shape == (50, 5) and not found[:, 2].any()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)

    def divergence(q):
        return np.sum(wanted * np.log(np.maximum(wanted, 1e-12) / np.maximum(q, 1e-12)), axis=1).mean()

    assert divergence(found) < 0.2 * divergence(np.broadcast_to(shares.mean(0), wanted.shape))


def test_one_image_and_few_superpixels_suffice():
    distribution = curriculum.fit_distributions(np.ones((1, 3)), np.array([[0.25, 0.75]]))
    np.testing.assert_allclose(distribution(np.ones((2, 3))), [[0.25, 0.75]] * 2, atol=0.02)
    judged = curriculum.fit_classes(np.array([[0.0, 1], [1, 0]]), np.array([4, 2]))(np.array([[0.1, 0.9], [2, 0]]))
    assert judged.classes.tolist() == [4, 2] and (judged.margins > 0).all()


def test_the_surest_share_is_kept():
    margins = np.random.default_rng(0).permutation(100) / 100
    assert (margins >= curriculum.least_margin(margins, 0.6)).sum() == 60
    assert (margins >= curriculum.least_margin(margins, 0.001)).sum() == 1
    assert (margins >= curriculum.least_margin(margins, 1.0)).sum() == 100


def test_superpixels_are_about_as_many_and_follow_edges():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 50:] = 200
    numbers = curriculum.superpixels(image, 60)
    assert numbers.dtype == np.uint8 and numbers.shape == (64, 128) and 40 < len(np.unique(numbers)) < 80
    dark = [np.mean(image[numbers == s] == 0) for s in np.unique(numbers)]
    across = [share for share in dark if 0.1 < share < 0.9]
    assert len(across) < 3


def test_descriptors_are_means_of_the_nearest_features():
    rng = np.random.default_rng(0)
    features, numbers = rng.normal(size=(2, 5, 7, 3)).astype(np.float32), rng.integers(0, 9, (2, 33, 49))
    numbers[0, :4] = IGNORE
    found = np.asarray(curriculum.descriptors(jnp.asarray(features), jnp.asarray(numbers, jnp.uint8)))
    y, x = np.rint(np.arange(33) * 4 / 32).astype(int), np.rint(np.arange(49) * 6 / 48).astype(int)
    near = features[:, y[:, None], x]
    assert found.shape == (2, 255, 3) and not found[:, 9:].any()
    for i in range(2):
        for s in range(9):
            np.testing.assert_allclose(found[i, s], near[i][numbers[i] == s].mean(0), atol=1e-5)


def test_a_superpixel_has_the_class_of_most_pixels_unless_most_are_ignored():
    numbers = np.repeat(np.arange(5, dtype=np.uint8), 10).reshape(5, 10)
    numbers[4] = IGNORE
    label = np.full((5, 10), IGNORE, np.uint8)
    label[0, :6], label[0, 6:] = 2, 1
    label[1, :6] = 3
    label[2, :4] = 3
    label[4] = 1
    found = curriculum.dominant_classes(numbers, label, 4)
    assert found[:5].tolist() == [2, 3, IGNORE, IGNORE, IGNORE] and (found[5:] == IGNORE).all()


# ---- File

ORIGIN = {
    **{"teacher": "0" * 64, "teacher_step": 7, "scales": [1.0], "classes": list(CITYSCAPES.names)},
    **{"selection": {}, "teacher_size": [64, 36], "label_size": [64, 36]},
    **{"images": ["gta5", "", "train"], "num_images": 6},
}
LANDMARKS = {
    **ORIGIN,
    "landmarks": {
        **{"source": ["gta5", "", "train"], "source_size": [64, 36], "source_images": 6},
        **{"superpixels": 100, "kept": 0.6},
    },
}


def answer(i):
    """The answers for image ``i``: landmarks that get darker to the right, of which the first is on the left."""
    numbers = np.broadcast_to(np.arange(64) // 8, (36, 64)).astype(np.uint8)
    shares = np.full(19, 0.5 / 18, np.float32)
    shares[i] = 0.5
    return Estimates(shares, np.arange(8, dtype=np.uint8) + i), numbers


def write(path, origin=LANDMARKS):
    items = ((f"{i:05d}", answer(i)[1], answer(i)[0]) for i in range(1, 7))
    assert pseudo_labels.write(path, items, origin) == 6
    return path


@pytest.fixture(scope="module")
def gta5(tmp_path_factory):
    root = tmp_path_factory.mktemp("gta5")
    conversion.convert(conversion.Conversion("gta5", raw_trees.gta5(root / "raw", 6)), root / "data")
    return root / "data"


def test_a_file_gives_back_what_it_was_given(tmp_path):
    path = write(tmp_path / "p.tfrecord")
    assert pseudo_labels.provenance(path) == LANDMARKS
    read = PseudoLabels(path, 19, kind="landmarks")
    for i in range(1, 7):
        estimated, numbers = answer(i)
        np.testing.assert_array_equal(read.read(f"{i:05d}"), numbers)
        shares, classes = read.estimates(f"{i:05d}")
        np.testing.assert_array_equal(shares, estimated.distribution)
        assert shares.dtype == np.float32 and classes.dtype == np.uint8 and len(classes) == 255
        np.testing.assert_array_equal(classes[:8], estimated.landmark_class)
        assert (classes[8:] == IGNORE).all()


def test_a_file_of_the_other_kind_is_refused(gta5, tmp_path):
    path = write(tmp_path / "p.tfrecord")
    plain = tmp_path / "classes.tfrecord"
    pseudo_labels.write(plain, [(f"{i:05d}", np.zeros((36, 64), np.uint8)) for i in range(1, 7)], ORIGIN)
    for stream, problem in (
        ({"pseudo_labels": str(path)}, f"{path} holds landmarks, where classes are wanted: delete it"),
        ({"landmarks": str(plain)}, f"{plain} holds classes, where landmarks are wanted: delete it"),
    ):
        stream = Stream("gta5", "train", (64, 36), labels=False, **stream)
        with pytest.raises(UserError, match=re.escape(problem)):
            next(streams.train_batches(gta5, stream, class_set=CITYSCAPES, batch_size=2, seed=0))


def rewritten(path, number, key, value):
    """The file with another feature of a record, and checksums of TFRecords that are right."""
    examples = [tf.train.Example.FromString(x) for x in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    examples[number].features.feature[key].bytes_list.value[:] = [value]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example.SerializeToString(deterministic=True))


@pytest.mark.parametrize("key", ["distribution", "landmark_class", "label"])
def test_what_was_changed_after_writing_is_refused(key, tmp_path):
    path = write(tmp_path / "p.tfrecord")
    rewritten(path, 3, key, b"\0" * 76)
    with pytest.raises(UserError, match=f"{path} is damaged .the checksum of record 3 differs.: delete it"):
        PseudoLabels(path, 19, kind="landmarks")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"distribution": np.full(18, 1 / 18, np.float32)},
            "record 1 has no distribution and landmarks of its classes",
        ),
        (
            {"distribution": np.full(19, np.nan, np.float32)},
            "record 1 has no distribution and landmarks of its classes",
        ),
        ({"distribution": np.full(19, 0.5, np.float32)}, "record 1 has no distribution and landmarks of its classes"),
        ({"landmark_class": np.full(3, 19, np.uint8)}, "record 1 has no distribution and landmarks of its classes"),
        ({"landmark_class": np.zeros(7, np.uint8)}, "the label of 00001 holds 7, of 7 landmarks"),
    ],
)
def test_estimates_that_cannot_be_are_refused(changed, problem, tmp_path):
    path, (estimated, numbers) = tmp_path / "p.tfrecord", answer(1)
    pseudo_labels.write(path, [("00001", numbers, estimated._replace(**changed))], LANDMARKS)
    with pytest.raises(UserError, match=f"{path}.*{problem}: delete it"):
        PseudoLabels(path, 19, kind="landmarks").read("00001")


def test_landmarks_move_with_their_image_and_its_answers_stay(gta5, tmp_path):
    stream = Stream("gta5", "train", (64, 36), labels=False, landmarks=str(write(tmp_path / "p.tfrecord")))
    plain = {i: raw_trees.picture(i, 36, 64) for i in range(1, 7)}
    flips = 0
    for flip in (False, True):
        stream = dataclasses.replace(stream, augment=Augment(flip=flip))
        batch = next(streams.train_batches(gta5, stream, class_set=CITYSCAPES, batch_size=12, seed=0))
        assert batch.keys() == {"image", "landmark", "distribution", "landmark_class"}
        for image, numbers, shares, classes in zip(*(batch[key] for key in batch), strict=True):
            i = next(i for i, x in plain.items() if np.array_equal(x, image) or np.array_equal(x[:, ::-1], image))
            estimated, expected = answer(i)
            flipped = not np.array_equal(plain[i], image)
            flips += flipped
            np.testing.assert_array_equal(numbers, expected[:, ::-1] if flipped else expected)
            np.testing.assert_array_equal(shares, estimated.distribution)
            np.testing.assert_array_equal(classes[:8], estimated.landmark_class)
    assert 0 < flips < 12


def test_a_crop_is_padded_with_pixels_of_no_landmark(gta5, tmp_path):
    path = str(write(tmp_path / "p.tfrecord"))
    stream = Stream("gta5", "train", (32, 18), labels=False, landmarks=path, augment=Augment(crop=(48, 24)))
    batch = next(streams.train_batches(gta5, stream, class_set=CITYSCAPES, batch_size=6, seed=0))
    assert batch["landmark"].shape == (6, 24, 48)
    outside = batch["image"].sum(-1) == 0
    assert (batch["landmark"][outside] == IGNORE).mean() > 0.95
    assert set(np.unique(batch["landmark"])) == {*range(8), IGNORE}


def test_missing_images_and_sampling_by_class_are_refused(gta5, tmp_path):
    path = tmp_path / "p.tfrecord"
    pseudo_labels.write(path, [("00001", *answer(1)[::-1])], LANDMARKS)
    stream = Stream("gta5", "train", (64, 36), labels=False, landmarks=str(path))
    with pytest.raises(UserError, match="has no label for 5 of 6 images, for instance 00002: delete it"):
        next(streams.train_batches(gta5, stream, class_set=CITYSCAPES, batch_size=2, seed=0))
    with pytest.raises(UserError, match="sampling='balanced' needs labels: use 'uniform' for gta5/train"):
        streams.check(gta5, dataclasses.replace(stream, sampling="balanced"), CITYSCAPES)


# ---- Stage

# Raw ids of road, building and sky, the class indices of which are 0, 2 and 10, and their colours.
COLOURS = {7: (60, 60, 70), 11: (170, 110, 60), 23: (90, 160, 250)}
INDEX = {0: 7, 2: 11, 10: 23}


def scene(seed, height=36, width=64):
    """A street in three colours, uint8 [H, W, 3], and its raw ids: a horizon and a house of random sizes."""
    rng = np.random.default_rng(seed)
    ids = np.full((height, width), 23, np.uint8)
    ids[rng.integers(10, 26) :] = 7
    left, top = rng.integers(0, 40), rng.integers(2, 10)
    ids[top : top + 20, left : left + rng.integers(10, 24)] = 11
    image = np.array([COLOURS.get(i, (0, 0, 0)) for i in range(24)])[ids] + rng.integers(-6, 7, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), ids


def make_scenes(root, ids=lambda raw: raw):
    """Converted GTA5 and Cityscapes of ``scene``; ``ids`` changes the raw ids of the source."""
    for i in range(1, 9):
        image, raw = scene(i)
        for folder, picture in (("images", Image.fromarray(image)), ("labels", Image.fromarray(ids(raw), mode="P"))):
            if folder == "labels":
                picture.putpalette([0] * 768)
            raw_trees._save(root / "raw" / "gta5" / folder / f"{i:05d}.png", picture)
    raw_trees.cityscapes(root / "raw" / "cityscapes")
    for i, path in enumerate(sorted((root / "raw" / "cityscapes" / "leftImg8bit").rglob("*.png"))):
        image, raw = scene(100 + i, 32, 64)
        Image.fromarray(image).save(path)
        stem = path.name.removesuffix("_leftImg8bit.png")
        labels = root / "raw" / "cityscapes" / "gtFine" / path.parent.parent.name / path.parent.name
        Image.fromarray(raw).save(labels / f"{stem}_gtFine_labelIds.png")
    for name in ("gta5", "cityscapes"):
        conversion.convert(conversion.Conversion(name, root / "raw" / name), root / "data")
    return root / "data"


def config_of(stage, data_dir, teacher="", **values):
    config = gta5_to_cityscapes.get_config(f"size=miniature,stage={stage},method=cda")
    for stream, size in (("source", (64, 36)), ("target", (64, 32)), ("eval", (64, 32))):
        config[stream].size = size
    config.target.flip = True
    config.model.update(widths=(8, 8, 8, 8), stem_width=8)
    config.update(data_dir=str(data_dir), batch_size=4, log_every=1, log_images=0, num_devices=1, teacher_from=teacher)
    config.update(checkpoint_every=1, keep_checkpoints=5, total_steps=3, init_from=teacher)
    config.update_from_flattened_dict(values)
    return schema.read(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, a source model, a whole stage that adapts it, and what that said."""
    root, said = tmp_path_factory.mktemp("cda"), []
    data_dir = make_scenes(root)
    run.train(config_of("source", data_dir, total_steps=8, checkpoint_every=8), root / "source", log=said.append)
    config = config_of("curriculum", data_dir, str(root / "source"))
    whole = run.train(config, root / "whole", log=said.append)
    return root, data_dir, config, whole, said


@pytest.mark.timeout(900)
def test_landmarks_have_the_classes_that_their_colours_tell(trained):
    root, data_dir, config, _, said = trained
    assert sum("landmarks of 6 images of 64x32: at most 0 MB" in line for line in said) == 1
    assert any("easy tasks: learns from 8 of 8 images of gta5/train" in line for line in said)
    path = root / "whole" / "pseudo_labels.tfrecord"
    assert any("solved the easy tasks for 6 target images with step 8" in line and str(path) in line for line in said)
    origin = pseudo_labels.provenance(path)
    assert origin["landmarks"] == {
        **{"source": ["gta5", "", "train"], "source_size": [64, 36], "source_images": 8},
        **{"superpixels": 100, "kept": 0.6},
    }
    read, stream = PseudoLabels(path, 19, kind="landmarks"), config.target.stream(augment=False)
    names = streams.names(data_dir, stream)
    right, landmarks, nearer = [], 0, []
    source = np.mean([np.bincount(scene(i)[1].ravel(), minlength=24) / (36 * 64) for i in range(1, 9)], axis=0)
    mean = np.array([source[INDEX[c]] if c in INDEX else 0 for c in range(19)])
    for name, (_, label) in zip(names, streams.examples(data_dir, stream, config.classes, range(6)), strict=True):
        numbers, (shares, classes) = np.asarray(read.read(name)), read.estimates(name)
        assert numbers.shape == (32, 64) and abs(shares.sum() - 1) < 1e-5
        inside = numbers != IGNORE
        landmarks += len(np.unique(numbers[inside]))
        right.append(classes[numbers[inside]] == label[inside])
        wanted = np.bincount(label.ravel(), minlength=19)[:19] / label.size
        divergences = [np.sum(wanted * np.log(np.maximum(wanted, 1e-9) / np.maximum(q, 1e-9))) for q in (shares, mean)]
        nearer.append(divergences)
    assert 0.4 * 6 * 60 < landmarks < 0.7 * 6 * 130
    assert np.concatenate(right).mean() > 0.95
    of_images, of_mean = np.mean(nearer, axis=0)
    assert of_images < of_mean


def test_killed_it_goes_on_bit_for_bit_with_the_same_file(trained):
    root, _, config, whole, _ = trained
    path = root / "whole" / "pseudo_labels.tfrecord"
    before, said = (path.read_bytes(), path.stat().st_mtime_ns), []
    for step in (2, 3):
        (root / "whole" / "checkpoints" / str(step)).rename(root / f"aside_{step}")
    assert checkpoints.available_steps(root / "whole") == [1]
    resumed = run.train(config, root / "whole", log=said.append)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert not any("landmarks of" in line or "easy tasks" in line for line in said)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    # Made again, it is the same file; from other landmarks the stage does not go on.
    (root / "whole" / "checkpoints" / "3").rename(root / "aside")
    path.rename(root / "old.tfrecord")
    run.train(config, root / "whole", log=said.append)
    assert path.read_bytes() == before[0]
    (root / "whole" / "checkpoints" / "3").rename(root / "aside_again")
    origin = pseudo_labels.provenance(path)
    origin["landmarks"]["kept"] = 0.5
    pseudo_labels.write(path, [], origin)
    with pytest.raises(UserError, match=r"does not hold the labels that .*landmarks:"):
        run.train(config, root / "whole", log=said.append)


def test_an_interrupted_write_leaves_nothing(trained, tmp_path, monkeypatch):
    _, _, config, _, _ = trained
    monkeypatch.setattr(pseudo_labels, "_digest", lambda *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train(config, tmp_path / "w", log=lambda line: None)
    assert not [path for path in (tmp_path / "w").iterdir() if "pseudo" in path.name]


@pytest.mark.timeout(900)
def test_a_source_of_one_class_is_refused(trained, tmp_path):
    root = trained[0]
    data_dir = make_scenes(tmp_path, lambda raw: np.where(raw == 7, raw, 0).astype(np.uint8))
    config = config_of("curriculum", data_dir, str(root / "source"), **{"options.source_images": 5})
    problem = "gta5/train: superpixels of the 5 images that the easy tasks learn from are of 1 class"
    with pytest.raises(UserError, match=problem):
        run.train(config, tmp_path / "w", log=lambda line: None)
    assert not (tmp_path / "w" / "pseudo_labels.tfrecord").exists()


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("skimage", lambda: curriculum.superpixels(np.zeros((8, 8, 3), np.uint8), 4)),
        ("sklearn", lambda: curriculum.fit_classes(np.ones((2, 2)), np.arange(2))),
    ],
)
def test_without_a_library_its_extra_is_named(library, call, monkeypatch):
    class Hiding:
        def find_spec(self, name, path=None, target=None):
            if name == library:
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hiding(), *sys.meta_path])
    with pytest.raises(UserError, match=rf"{library} is not installed: pip install 'fada-jax\[systems\]'"):
        call()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"landmark_class": None}, "batch 0: target/landmark_class is missing"),
        ({"distribution": np.zeros((2, 18), np.float32)}, r"target/distribution is float32\[2, 18\], must be .*2, 19"),
        ({"landmark": np.zeros((2, 16, 64), np.uint8)}, r"target/landmark is uint8\[2, 16, 64\], must be .*2, 32, 64"),
        ({"landmark_class": np.full((2, 255), 19, np.uint8)}, "target/landmark_class holds 19, which is no class"),
    ],
)
def test_batches_of_ones_own_hold_the_answers(changed, problem):
    config = config_of("curriculum", "data")
    batch = {
        name: {key: np.zeros(x.shape, x.dtype) for key, x in part.items()}
        for name, part in data.batch_shapes(config).items()
    }
    assert next(data.checked_batches(config, [batch])) is batch
    batch["target"] = {key: x for key, x in (batch["target"] | changed).items() if x is not None}
    with pytest.raises(UserError, match=problem):
        next(data.checked_batches(config, [batch]))


@pytest.mark.parametrize(
    ("arguments", "overrides", "problem"),
    [
        ("stage=adaptation", {}, "config.stage=adaptation: method=cda is trained in stage=curriculum"),
        ("stage=curriculum", {"options.gamma": 1.5}, "config.options.gamma=1.5"),
        ("stage=curriculum", {"options.power": 0.0}, "config.options.power=0.0"),
        ("stage=curriculum", {"options.superpixels": 201}, "config.options.superpixels=201"),
        ("stage=curriculum", {"options.landmarks_kept": 0.0}, "config.options.landmarks_kept=0.0"),
        ("stage=curriculum", {"options.source_images": 0}, "config.options.source_images=0"),
    ],
)
def test_values_that_cannot_be_are_refused(arguments, overrides, problem):
    with pytest.raises(UserError, match=problem):
        schema.load(f"configs/gta5_to_cityscapes.py:method=cda,{arguments}", overrides)


def test_its_recipe_adapts_the_source_model(tmp_path):
    for size, steps, weight in (("released", 40_000, 1.0), ("miniature", 750, 0.003)):
        stages = recipe.configs(f"configs/gta5_to_cityscapes.py:method=cda,size={size}", {}, tmp_path)
        assert list(stages) == ["source", "adaptation"]
        config = stages["adaptation"]
        assert (config.stage, config.total_steps, config.lambda_adv) == ("curriculum", steps, weight)
        assert config.init_from == config.teacher_from == str(tmp_path / "source")
        assert recipe.adapted(stages) == "adaptation"


def test_the_step_traces_at_full_size():
    config = schema.load("configs/gta5_to_cityscapes.py:method=cda,stage=curriculum", {})
    states, batch = jax.eval_shape(lambda: program.create_states(config)), data.batch_shapes(config)
    assert {key: x.shape for key, x in batch["target"].items()} == {
        "image": (4, 512, 1024, 3), "landmark": (4, 512, 1024), "distribution": (4, 19), "landmark_class": (4, 255),
    }  # fmt: skip
    updated, metrics = jax.eval_shape(program.make_step(config), states, batch)
    assert jax.tree.structure(updated) == jax.tree.structure(states)
    assert sorted(metrics) == ["grad_norm", "loss_image", "loss_landmarks", "loss_seg"]


def test_landmarks_take_no_more_memory_than_some_maps_of_classes():
    """Without rows one after the other, 255 values of each pixel would be there at once."""
    method, size, known = SYSTEMS["cda"].method(), (256, 512), estimates(0, 1)
    known["landmark"] = np.zeros((1, *size), np.uint8)
    gradient = jax.jit(jax.grad(lambda z: sum(method.target_losses(z, size, jax.tree.map(jnp.asarray, known)))))
    compiled = gradient.lower(jax.ShapeDtypeStruct((1, 33, 65, K), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * 4 * K * size[0] * size[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_find_what_one_finds(trained, tmp_path):
    root, data_dir, *_ = trained
    command = (
        "-m", "fada_jax.train", "--config=configs/gta5_to_cityscapes.py:size=miniature,stage=curriculum,method=cda",
        f"--config.data_dir={data_dir}", f"--config.init_from={root / 'source'}",
        f"--config.teacher_from={root / 'source'}", "--config.source.size=(64,36)", "--config.target.size=(64,32)",
        "--config.eval.size=(64,32)", "--config.model.widths=(8,8,8,8)", "--config.model.stem_width=8",
        "--config.total_steps=2", "--config.checkpoint_every=2", "--config.log_every=1",
    )  # fmt: skip
    for count in (1, 2):
        interruptions.finish((*command, f"--workdir={tmp_path / str(count)}"), count)
    one, two = (tmp_path / str(count) for count in (1, 2))
    assert (one / "pseudo_labels.tfrecord").read_bytes() == (two / "pseudo_labels.tfrecord").read_bytes()
    for a, b in zip(interruptions.losses(one), interruptions.losses(two), strict=True):
        assert a.keys() == b.keys() and all(abs(a[key] - b[key]) <= 1e-5 * abs(a[key]) for key in a)
