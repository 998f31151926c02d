"""What users get wrong, one row a mistake: one clear line, a non-zero exit, and nothing touched.

docs/results/errors.json holds the whole answer of each, for docs/errors.md. After a change of a message:

  python -m pytest tests/test_bad_inputs.py --write-errors && make docs-numbers
"""

import importlib
import io
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import raw_trees
from bad_files import make_bad_files
from commands import ROOT, command_here, one_error
from ml_collections import ConfigDict
from PIL import Image

from fada_jax import classes, images
from fada_jax import config as schema
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, layouts, raw_files
from fada_jax.stages import data, program, workdirs
from fada_jax.training import saving

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"
SIZES = ("--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)")
PLAIN = ("-m", "fada_jax.train", "--config.data_dir={data}", "--workdir={new}/w", CONFIG)
TRAIN = (*PLAIN[:3], *SIZES)
SOURCE = (*TRAIN, CONFIG, "--workdir={new}/w")
ADVERSARIAL = (*TRAIN, f"{CONFIG},stage=adaptation", "--workdir={new}/w")
EVALUATE = ("-m", "fada_jax.evaluate", "--workdir={good}", "--data_dir={data}")
PREDICT = ("-m", "fada_jax.predict", "--workdir={good}", "--out={new}/out")
WEIGHTS = ("-m", "fada_jax.convert_weights")
IMPORT = (*WEIGHTS, "import", "--output={new}/w")
CONVERT = ("scripts/convert_dataset.py", "--data_dir={new}/data", "--workers=1")
GTA5 = (*CONVERT, "--dataset=gta5")
FOLDER = (*CONVERT, "--dataset=folder", "--raw_dir={raw}/folder", "--name=mine")
INSPECT = ("scripts/inspect_dataset.py", "--data_dir={data}", "--output={new}/sheet.png")
RECIPE = ("scripts/run_recipe.py", "--config.data_dir={data}", *SIZES)
MINIATURE = ("scripts/make_miniature.py",)

# What is wrong -> command, exit status, what its one line says.
ROWS = {
    "configs": {
        "unknown key": ((*SOURCE, "--config.sead=1"), 2, 'Did you mean "seed"'),
        "text for a number": ((*SOURCE, "--config.total_steps=ten"), 2, "total_steps"),
        "fraction for a whole number": ((*SOURCE, "--config.batch_size=2.5"), 2, "batch_size"),
        "unknown config argument": ((*TRAIN, f"{CONFIG},stages=source", "--workdir={new}/w"), 2, "'stages=source'"),
        "unknown stage": ((*TRAIN, f"{CONFIG},stage=sauce", "--workdir={new}/w"), 2, "stage='sauce'"),
        "no config": ((*TRAIN[:2], "--workdir={new}/w"), 1, "--config is missing"),
        "config file not there": ((*TRAIN[:2], "--config={new}/no.py", "--workdir={new}/w"), 1, "no.py: no such file"),
        "config file with a syntax error": ((*TRAIN[:2], "--config={bad}/syntax.py", "--workdir={new}/w"), 2, "syntax"),
        "own config with an unknown key": ((*TRAIN, "--config={bad}/extra.py", "--workdir={new}/w"), 1, "config.nope"),
        "own config with a wrong type": ((*TRAIN, "--config={bad}/typed.py", "--workdir={new}/w"), 1, "log_every='50'"),
        "no steps": ((*SOURCE, "--config.total_steps=0"), 1, "config.total_steps=0 must be at least 1"),
        "negative image size": ((*PLAIN, "--config.source.size=(-48,32)"), 1, "config.source.size=(-48, 32)"),
        "image size of one number": ((*PLAIN, "--config.source.size=(48,)"), 1, "config.source.size=(48,)"),
        "negative seed": ((*SOURCE, "--config.seed=-1"), 1, "config.seed=-1"),
        "negative learning rate": (
            (*SOURCE, "--config.generator_optimizer.learning_rate=-1.0"), 1, "generator_optimizer.learning_rate=-1.0",
        ),
        "learning rate that ends before the run": (
            (*SOURCE, "--config.total_steps=2000"), 1, "schedule_steps=1001 is less than config.total_steps=2000",
        ),
        "hue beyond half a turn": ((*SOURCE, "--config.source.hue=0.7"), 1, "config.source.hue=0.7"),
        "scale upside down": ((*SOURCE, "--config.target.scale=(2.0,0.5)"), 1, "config.target.scale=(2.0, 0.5)"),
        "unknown normalisation": ((*SOURCE, "--config.model.norm=batch"), 1, "config.model.norm='batch'"),
        "three widths for four stages": ((*SOURCE, "--config.model.widths=(8,8,8)"), 1, "model.widths=(8, 8, 8)"),
        "unknown sampling": ((*SOURCE, "--config.source.sampling=even"), 1, "sampling='even'"),
        "score between checkpoints": ((*SOURCE, "--config.eval_every=7"), 1, "config.eval_every=7 must be a multiple"),
        "odd batch for two domains": ((*ADVERSARIAL, "--config.batch_size=3"), 1, "config.batch_size=3 must be even"),
        "batch that the micro-batches do not divide": (
            (*SOURCE, "--config.accumulate_steps=3"), 1, "config.accumulate_steps=3",
        ),
        "more devices than there are": ((*SOURCE, "--config.num_devices=64"), 1, "config.num_devices=64"),
        "mesh that does not divide the devices": ((*SOURCE, "--config.mesh.fsdp=3"), 1, "config.mesh: fsdp=3"),
        "unknown class set": ((*SOURCE, "--config.class_set=cityscapes18"), 1, "config.class_set: "),
        "class set that the labels do not have": ((*SOURCE, "--config.class_set=camvid11"), 1, "no labels for"),
        "class map that is no JSON": ((*SOURCE, "--config.class_set={bad}/broken.json"), 1, "broken.json"),
    },
    "workdirs and data": {
        "no workdir": ((*TRAIN, CONFIG), 1, "--workdir is missing"),
        "workdir that is a file": ((*TRAIN, CONFIG, "--workdir={bad}/file"), 1, "{bad}/file is a file"),
        "workdir of another config": (
            (*TRAIN, CONFIG, "--workdir={good}", "--config.seed=5"), 1, "seed: 0 there, 5 now",
        ),
        "workdir trained on more images": (
            (*TRAIN, CONFIG, "--workdir={good}", "--config.data_dir={less}"), 1, "holds {{'source': 4}}",
        ),
        "recipe in a workdir of another config": (
            (*RECIPE, CONFIG, "--workdir={recipe}", "--config.seed=5"), 1, "seed: 0 there, 5 now",
        ),
        "data not converted": ((*SOURCE, "--config.data_dir={new}/data"), 1, "convert_dataset.py --dataset=gta5"),
        "split that is not there": ((*SOURCE, "--config.source.split=val"), 1, "no split 'val': one of train"),
        "training on a split without labels": (
            (*SOURCE, "--config.source.dataset=cityscapes", "--config.source.split=test"), 1, "has no labels",
        ),
        "start from weights that are not there": (
            (*SOURCE, "--config.init_from={new}/no"), 1, "config.init_from: no checkpoint in {new}/no",
        ),
        "start from another network": (
            (*SOURCE, "--config.init_from={good}", "--config.model.stem_width=4"), 1, "its model.stem_width is 16",
        ),
        "start from other classes": (
            (*TRAIN, "--config=configs/synthia_to_cityscapes.py:size=miniature", "--config.source.dataset=cityscapes",
             "--config.init_from={good}", "--workdir={new}/w"),
            1, "its class set is 'cityscapes19', this config's is 'synthia16'",
        ),
        "self-distillation without a teacher": (
            (*TRAIN, f"{CONFIG},stage=self_distillation", "--workdir={new}/w"), 1, "config.teacher_from is empty",
        ),
        "start from a damaged checkpoint": (
            (*SOURCE, "--config.init_from={damaged}"), 1, "is damaged (model/manifest.ocdbt is not as it was written)",
        ),
    },
    "evaluate, predict, weights": {
        "flag that is not there": ((*EVALUATE, "--wrokdir=x"), 2, "wrokdir"),
        "flag that is required": (("-m", "fada_jax.evaluate"), 2, "--workdir"),
        "flag with a value it cannot have": ((*EVALUATE, "--colour_matching=all"), 2, "colour_matching"),
        "argument without a flag": ((*EVALUATE, "x.png"), 1, "unexpected argument 'x.png'"),
        "half of the flags of several processes": ((*EVALUATE, "--num_processes=2"), 1, "need --coordinator"),
        "workdir without checkpoints": (("-m", "fada_jax.evaluate", "--workdir={new}/no"), 1, "no checkpoint in"),
        "checkpoint that is not there": ((*EVALUATE, "--checkpoint=4"), 1, "checkpoint '4' is not in"),
        "best checkpoint of a run without scores": ((*PREDICT, "{photo}", "--checkpoint=best"), 1, "config.eval_every"),
        "evaluation of a split that is not there": ((*EVALUATE, "--split=nope"), 1, "no split 'nope'"),
        "evaluation of a split without labels": ((*EVALUATE, "--split=test"), 1, "has no labels"),
        "truncated checkpoint": (
            ("-m", "fada_jax.evaluate", "--workdir={damaged}"), 1, "is damaged (model/manifest.ocdbt is not as",
        ),
        "checkpoint with a file deleted": (
            ("-m", "fada_jax.evaluate", "--workdir={damaged}", "--checkpoint=3"), 1, "meta/metadata: No such file",
        ),
        "nothing to predict": (PREDICT, 1, "no image given"),
        "two images of one name": (
            (*PREDICT, "{photo}", "{bad}/again/photo.png"), 1, "several images are called 'photo'",
        ),
        "export to an unknown format": (
            (*WEIGHTS, "export", "--workdir={good}", "--output={new}/x.onnx"), 1, "must end in .pth or .safetensors",
        ),
        "export of what PyTorch cannot hold": (
            (*WEIGHTS, "export", "--workdir={good}", "--output={new}/x.pth"), 1, "norm 'group'",
        ),
        "neither import nor export": (WEIGHTS, 1, "say what to do"),
        "import without a file": ((*WEIGHTS, "import"), 1, "import needs --input"),
        "import of a file that is not there": ((*IMPORT, "--input={new}/no.pth"), 1, "no such file"),
        "import of an empty file": ((*IMPORT, "--input={bad}/empty.pth"), 1, "empty.pth is no readable PyTorch"),
        "import of a zip that is no checkpoint": ((*IMPORT, "--input={bad}/zip.pth"), 1, "zip.pth is no readable"),
        "import of a pickle with code in it": ((*IMPORT, "--input={bad}/code.pth"), 1, "code in a file is never run"),
        "import of a torn .safetensors": ((*IMPORT, "--input={bad}/torn.safetensors"), 1, "no readable safetensors"),
        "import of another network": ((*IMPORT, "--input={bad}/foreign.safetensors"), 1, "holds no ResNet"),
    },
    "image files given to predict": {
        "image that is not there": ((*PREDICT, "{new}/no.png"), 1, "no.png: no such image"),
        "zero bytes": ((*PREDICT, "{bad}/empty.png"), 1, "empty.png: not a readable image"),
        "truncated": ((*PREDICT, "{bad}/truncated.png"), 1, "truncated.png: not a readable image"),
        "text called .png": ((*PREDICT, "{bad}/text.png"), 1, "text.png: not a readable image"),
        "folder called .png": ((*PREDICT, "{bad}/folder.png"), 1, "folder.png holds no image"),
        "larger than memory": ((*PREDICT, "{bad}/huge.png"), 1, "huge.png: not a readable image (Image size"),
        "loop of symbolic links": ((*PREDICT, "{bad}/loop.png"), 1, "loop.png: not a readable image"),
        "32-bit pixels": ((*PREDICT, "{bad}/float.tiff"), 1, "save it with 8 or 16 bits"),
        "good images before a bad one": ((*PREDICT, "{photo}", "{bad}/text.png"), 1, "text.png"),
    },
    "raw data given to convert_dataset": {
        "unknown data set": ((*CONVERT, "--dataset=kitti"), 2, "kitti"),
        "no raw folder": ((*GTA5, "--raw_dir={new}/no"), 1, "no such folder"),
        "another layout": ((*GTA5, "--raw_dir={raw}/cityscapes"), 1, "must be the folder that holds images/"),
        "size that is none": ((*GTA5, "--raw_dir={raw}/gta5", "--resize=640"), 1, "--resize=640"),
        "no worker": ((*GTA5, "--raw_dir={raw}/gta5", "--workers=0"), 2, "workers"),
        "unknown city": ((*CONVERT, "--dataset=crosscity", "--city=Paris"), 1, "--city=Paris"),
        "own data without a class map": (FOLDER, 1, "--class_map is missing"),
        "own data without a name": (FOLDER[:-1], 1, "--name="),
        "class map with an id twice": ((*FOLDER, "--class_map={bad}/twice.json"), 1, "raw id 1 of class 'b' is used"),
        "label missing": ((*GTA5, "--raw_dir={bad}/missing"), 1, "00003.png is missing: every image needs its label"),
        "label with other values": ((*GTA5, "--raw_dir={bad}/values"), 1, "holds ids that gta5 does not define: [99]"),
        "label in colours": ((*GTA5, "--raw_dir={bad}/colours"), 1, "is a colour picture (RGB)"),
        "label of another size": ((*GTA5, "--raw_dir={bad}/sizes"), 1, "is 10x10, its image 64x36"),
        "label larger than memory": ((*GTA5, "--raw_dir={bad}/huge_label"), 1, "exceeds limit"),
        "16-bit label larger than memory": ((*GTA5, "--raw_dir={bad}/huge_label16"), 1, "pixels are not read"),
        "image of zero bytes": ((*GTA5, "--raw_dir={bad}/zero"), 1, "00003.png is not a readable image"),
        "image cut short": ((*GTA5, "--raw_dir={bad}/cut"), 1, "00003.png is not a readable image"),
        "image larger than memory": ((*GTA5, "--raw_dir={bad}/huge"), 1, "exceeds limit"),
        "image that links to itself": ((*GTA5, "--raw_dir={bad}/loop"), 1, "00003.png is not a readable image"),
        "file name that is not UTF-8": ((*GTA5, "--raw_dir={bad}/utf8"), 1, "whose name is not UTF-8"),
    },
    "other commands": {
        "inspection of data that are not there": ((*INSPECT, "--dataset=synthia"), 1, "convert_dataset.py"),
        "inspection by classes that are not labelled": (
            (*INSPECT, "--dataset=gta5", "--class_set=camvid11"), 1, "no labels for",
        ),
        "recipe without a workdir": ((*RECIPE, CONFIG), 2, "--workdir"),
        "recipe whose last stage lacks its data": (
            (*RECIPE, CONFIG, "--workdir={new}/w", "--config.target.split=extra"), 1, "no split 'extra'",
        ),
        "miniature data over other files": ((*MINIATURE, "--out={bad}"), 1, "not empty and not made by this script"),
        "miniature data of a size that is none": ((*MINIATURE, "--out={new}/x", "--size=big"), 1, "--size=big"),
        "ablation with a seed twice": (
            ("scripts/ablate.py", CONFIG, "--workdir={new}/w", "--seeds=1,1"), 1, "--seeds=1,1",
        ),
    },
}  # fmt: skip
# Modules with further rows and places, each of its area.
AREAS = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("mistakes_*.py"))]
ROWS |= {group: rows for area in AREAS for group, rows in area.ROWS.items()}


def tiny_config(**values):
    config = gta5_to_cityscapes.get_config("size=miniature")
    config.source.size, config.target.size, config.eval.size = (48, 32), (48, 24), (48, 24)
    config.update(values)
    return config


def write_checkpoints(workdir, config, *steps, images=None):
    """Checkpoints of zeros, which need no compilation."""
    states = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda: program.create_states(schema.read(config)))
    )
    class_set = classes.get_class_set(config.class_set)
    meta = saving.make_meta(
        schema.read(config).plain(), schema.read(config).model, schema.read(config).preprocessing, class_set, images
    )
    with saving.writing(workdir, meta, wait=True) as save:
        for number in steps:
            save(number, states)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders that the rows name; ``new`` is empty."""
    root = tmp_path_factory.mktemp("bad")
    found = {name: root / name for name in ("raw", "data", "less", "bad", "good", "recipe", "damaged", "new")}
    for name, make in (("gta5", raw_trees.gta5), ("cityscapes", raw_trees.cityscapes)):
        conversion.convert(conversion.Conversion(name, make(found["raw"] / name)), found["data"])
    raw_trees.folder(found["raw"] / "folder", "train", 2, np.ones((20, 30), np.uint8))
    conversion.convert(conversion.Conversion("gta5", raw_trees.gta5(root / "four", 4)), found["less"])
    make_bad_files(found["bad"])
    found["new"].mkdir()
    config = tiny_config(data_dir=str(found["data"]))
    write_checkpoints(found["good"], config, 3, 6, images={"source": 6})
    write_checkpoints(found["recipe"] / "source", config, 6, images={"source": 6})
    write_checkpoints(found["damaged"], config, 3, 6)
    (found["damaged"] / "checkpoints" / "3" / "meta" / "metadata").unlink()
    (found["damaged"] / "checkpoints" / "6" / "model" / "manifest.ocdbt").write_bytes(b"")
    found["photo"] = found["bad"] / "photo.png"
    for area in AREAS:
        found |= area.make(found)
    return found


@pytest.fixture(autouse=True)
def cached(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


def snapshot(root):
    return {
        os.fsencode(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


# What the documentation calls the places of the rows.
DOC_PLACES = {
    **{"raw": "RAW", "data": "DATA", "less": "LESS", "bad": "BAD", "good": "W", "recipe": "W", "damaged": "W"},
    **{"new": "NEW", "photo": "BAD/photo.png"},
}
ANSWERS = ROOT / "docs" / "results" / "errors.json"


def as_documented(message, places):
    """The message with the documentation's names of places."""
    # Places of other areas lie in BAD.
    for name in sorted(DOC_PLACES, key=lambda name: len(str(places[name])), reverse=True):
        message = message.replace(str(places[name]), DOC_PLACES[name])
    # As the standard error shows bytes that are no UTF-8.
    return message.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def answers(request):
    """The documented answers, by group and mistake; with --write-errors they become what the commands say now."""
    stored = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
    found = {group: dict(stored.get(group, {})) for group in ROWS}
    yield found
    if request.config.getoption("--write-errors"):
        ordered = {group: {name: found[group].get(name, "") for name in rows} for group, rows in ROWS.items()}
        ANSWERS.write_text(json.dumps(ordered, indent=2) + "\n")


@pytest.mark.parametrize(
    ("group", "name"),
    [pytest.param(group, name, id=f"{group}: {name}") for group, rows in ROWS.items() for name in rows],
)
def test_a_mistake_ends_with_one_line_and_touches_nothing(request, places, answers, group, name):
    arguments, status, expected = ROWS[group][name]
    root = places["new"].parent
    before = snapshot(root)
    got, _, errors = command_here(*(argument.format(**places) for argument in arguments))
    message = one_error(errors)
    assert expected.format(**places) in message and got == status
    if request.config.getoption("--write-errors"):
        answers[group][name] = as_documented(message, places)
    assert as_documented(message, places) == answers[group].get(name), "run this file with --write-errors"
    after = snapshot(root)
    # What conversion found, for the user.
    reports = {path for path in after.keys() - before.keys() if path.endswith(b"_errors.txt")}
    assert {path: after[path] for path in after.keys() - reports} == before
    for path in reports:
        os.unlink(path)


def test_every_mistake_is_documented_and_no_other():
    stored = json.loads(ANSWERS.read_text())
    assert {group: list(rows) for group, rows in stored.items()} == {g: list(rows) for g, rows in ROWS.items()}


@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_of_every_kind_are_read_as_viewers_show_them(tmp_path, bits):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    color = raw_trees.picture(3, 8, 8)
    rgb = Image.fromarray(color)
    (tmp_path / "a folder with spaces").mkdir()
    path = tmp_path / "a folder with spaces" / "my picture.png"
    if bits == 16:
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
        np.testing.assert_array_equal(images.read_image(path), np.repeat(grey[..., None], 3, -1))
        path.write_bytes(raw_trees.png16(color.astype(np.uint16) * 257))
        np.testing.assert_array_equal(images.read_image(path), color)
        return
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(grey))
    alpha.save(path)
    np.testing.assert_array_equal(images.read_image(path), color)
    frames = [rgb, Image.fromarray(255 - color)]
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.read_image(tmp_path / "animated.png"), color)
    rgb.convert("CMYK").save(tmp_path / "cmyk.tiff")
    np.testing.assert_array_equal(images.read_image(tmp_path / "cmyk.tiff"), color)
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees.
    rgb.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(images.read_image(tmp_path / "turned.png"), np.rot90(color, -1))


def test_training_sees_pictures_as_prediction_does(tmp_path):
    """What is stored is what viewers show, whatever the file holds."""
    encoding = classes.ENCODINGS["gta5"]
    color = raw_trees.picture(3, 16, 24)
    rgb = Image.fromarray(color)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"turned.jpg": (rgb, {"exif": exif}), "cmyk.jpg": (rgb.convert("CMYK"), {})}
    files["grey16.png"] = (Image.fromarray(color[..., 0].astype(np.uint16) * 257), {})
    for name, (image, options) in files.items():
        image.save(tmp_path / name, **options)
        record = raw_files.read_record("gta5", encoding, layouts.RawExample(name, tmp_path / name, None))
        decoded = np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"))
        assert decoded.shape == (record.height, record.width, 3)
        np.testing.assert_array_equal(decoded, images.read_image(tmp_path / name), name)


def test_a_config_lacks_no_key():
    config = tiny_config()
    with config.unlocked():
        del config["seed"]
    with pytest.raises(UserError, match=r"config\.seed is missing"):
        schema.read(config)
    with pytest.raises(UserError, match=r"config\.model=1 must be a group"):
        schema.read(ConfigDict({**tiny_config().to_dict(), "model": 1}))


def batch_of(**values):
    """A batch as a caller makes it for ``tiny_config``'s source stage, with other arrays of the source."""
    good = {"image": np.zeros((8, 32, 48, 3), np.uint8), "label": np.full((8, 32, 48), 255, np.uint8)}
    source = {key: value for key, value in {**good, **values}.items() if value is not None}
    return {"source": source}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": np.zeros((8, 32, 48, 3), np.float32)}, r"source/image is float32\[8, 32, 48, 3\], must be uint8"),
        ({"image": np.zeros((4, 32, 48, 3), np.uint8)}, r"is uint8\[4, 32, 48, 3\], must be uint8\[8, 32, 48, 3\]"),
        ({"label": None}, "batch 0: source/label is missing"),
        ({"label": np.zeros((8, 16, 24), np.uint8)}, r"is uint8\[8, 16, 24\], must be uint8\[8, 32, 48\]"),
        ({"label": np.full((8, 32, 48), 19, np.uint8)}, "holds 19, which is no class of cityscapes19"),
    ],
)
def test_a_callers_batch_is_what_it_says_or_is_refused(values, message):
    config = schema.read(tiny_config())
    assert len(list(data.checked_batches(config, [batch_of(), batch_of()]))) == 2
    with pytest.raises(UserError, match=message):
        list(data.checked_batches(config, [batch_of(**values)]))
    with pytest.raises(UserError, match=r"batch 1: source/image is uint8\[8, 16, 48, 3\]"):
        list(data.checked_batches(config, [batch_of(), batch_of(image=np.zeros((8, 16, 48, 3), np.uint8))]))


def test_a_recipe_is_read_at_its_last_finished_stage(tmp_path):
    config = tiny_config()
    done = config.total_steps
    write_checkpoints(tmp_path / "source", config, done)
    write_checkpoints(tmp_path / "adaptation", config, done - 1)
    assert workdirs.stage_workdir(tmp_path) == tmp_path / "source"
    write_checkpoints(tmp_path / "adaptation", config, done)
    assert workdirs.stage_workdir(tmp_path) == tmp_path / "adaptation"
    # What is not finished can be looked at all the same.
    write_checkpoints(tmp_path / "other" / "source", config, 1)
    assert workdirs.stage_workdir(tmp_path / "other") == tmp_path / "other" / "source"
