"""Mistakes in raw and converted data, as rows of tests/test_bad_inputs.py."""

import json
import os
import shutil

import numpy as np
import raw_trees
from PIL import Image

from fada_jax.input_pipeline import conversion

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"
SIZES = ("--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)")
TRAIN = ("-m", "fada_jax.train", CONFIG, *SIZES, "--workdir={new}/w")
CONVERT = ("scripts/convert_dataset.py", "--workers=1")
GTA5 = (*CONVERT, "--dataset=gta5", "--data_dir={new}/data")
FOLDER = (*CONVERT, "--dataset=folder", "--name=mine", "--class_map={bad}/map.json", "--data_dir={new}/data")
OWN = (*CONVERT, "--dataset=folder", "--name=mine", "--data_dir={own_data}")
AGAIN = (*CONVERT, "--dataset=gta5", "--raw_dir={raw}/gta5")
INSPECT = ("scripts/inspect_dataset.py", "--dataset=gta5", "--output={new}/sheet.png")
EVALUATE = ("-m", "fada_jax.evaluate", "--workdir={good}", "--data_dir={data}")
DAMAGED = "1.0.0/train_index.npz is damaged ("

ROWS = {
    "labels that are no class ids": {
        "ids of 4 bits that the class map lacks": (
            (*FOLDER, "--raw_dir={bad}/four_bits"), 1, "street_0.png holds ids that mine does not define: [7]",
        ),
        "ids of 1 bit that the class map lacks": (
            (*FOLDER, "--raw_dir={bad}/one_bit"), 1, "street_0.png holds ids that mine does not define: [0]",
        ),
        "JPEG called .png": ((*GTA5, "--raw_dir={bad}/label_jpeg"), 1, "(it is no PNG): labels are PNGs, which lose no"),
        "transparent pixels": ((*GTA5, "--raw_dir={bad}/label_alpha"), 1, "has transparent pixels (LA)"),
        "animation": ((*GTA5, "--raw_dir={bad}/label_animated"), 1, "is an animation, not a map of class ids"),
        "16-bit colours": ((*GTA5, "--raw_dir={bad}/label_rgb16"), 1, "is a colour picture (RGB), not a map of"),
        "turned otherwise than its image": (
            (*GTA5, "--raw_dir={bad}/label_turned"), 1, "are turned differently by EXIF (orientation 3 and 1)",
        ),
        "damaged": ((*GTA5, "--raw_dir={bad}/label_flipped"), 1, "(its part 'IDAT' is damaged)"),
        "named pipe": ((*GTA5, "--raw_dir={bad}/label_pipe"), 1, "(is a named pipe, not a file)"),
    },
    "raw data and where they go": {
        "named pipe among the images": ((*GTA5, "--raw_dir={bad}/image_pipe"), 1, "(is a named pipe, not a file)"),
        "device among the images": ((*GTA5, "--raw_dir={bad}/image_device"), 1, "(is a device, not a file)"),
        "two images of one name": ((*GTA5, "--raw_dir={bad}/image_twice"), 1, "several images called '00003'"),
        "line break in a name": ((*GTA5, "--raw_dir={bad}/image_newline"), 1, "a line break or the like in its name"),
        "split called all": ((*FOLDER, "--raw_dir={bad}/split_all"), 1, "no split can be called 'all'"),
        "split with a blank in its name": ((*FOLDER, "--raw_dir={bad}/split_blank"), 1, "split 'my train' can be no name"),
        "size larger than memory": (
            (*GTA5, "--raw_dir={raw}/gta5", "--resize=100000x100000"), 1, "--resize=100000x100000: sides of 1 to 32768",
        ),
        "size without pixels": ((*GTA5, "--raw_dir={raw}/gta5", "--resize=0x0"), 1, "--resize=0x0: must be"),
        "city of another data set": ((*GTA5, "--raw_dir={raw}/gta5", "--city=Rome"), 1, "--city is for --dataset=cros"),
        "name that is a path": ((*FOLDER, "--raw_dir={raw}/folder", "--name=../x"), 1, "--name=../x: name your data set"),
        "data folder that is a file": ((*AGAIN, "--data_dir={bad}/file"), 1, "--data_dir={bad}/file is not a folder"),
        "data folder in a file": ((*AGAIN, "--data_dir={bad}/file/data"), 1, "{bad}/file is not a folder"),
        "list of bad files that is somebody else's": (
            (*AGAIN, "--data_dir={bad}/their_list"), 1, "gta5_errors.txt is there already and was not made by fada-jax",
        ),
        "data set that is somebody else's": (
            (*AGAIN, "--overwrite", "--data_dir={bad}/their_folder"), 1, "1.0.0 holds thesis.tex, which was not made by a",
        ),
        "file of somebody else in a data set": (
            (*AGAIN, "--overwrite", "--data_dir={bad}/their_file"), 1, "1.0.0 holds thesis.tex, which was not made by a",
        ),
        "folder of a partial's name": (
            (*AGAIN, "--data_dir={bad}/their_partial"), 1, ".1.0.0.partial is in the way and was not made by fada-jax",
        ),
        "other images than were converted": (
            (*CONVERT, "--dataset=gta5", "--data_dir={data}", "--raw_dir={bad}/other_images"), 1,
            "holds gta5 made of other files than lie in --raw_dir now (train): --overwrite converts it again",
        ),
        "class map whose ids have moved since the conversion": (
            (*OWN, "--raw_dir={raw}/folder", "--class_map={bad}/moved.json"), 1,
            "holds mine converted with another class map than {bad}/moved.json: --overwrite converts it again",
        ),
        "verification of what is not there": ((*GTA5, "--verify"), 1, "is not there: nothing to verify"),
        "verification of a cut shard": (
            (*CONVERT, "--dataset=gta5", "--verify", "--data_dir={bad}/shard_cut"), 1, "record 5 is damaged",
        ),
    },
    "converted data that were changed": {
        **{
            f"index: {what}": ((*INSPECT, f"--data_dir={{bad}}/{name}"), 1, message)
            for name, what, message in (
                ("idx_empty", "empty", f"{DAMAGED}File is not a zip file): convert again with --overwrite"),
                ("idx_text", "text", DAMAGED),
                ("idx_trunc", "cut short", DAMAGED),
                ("idx_nokey", "without counts", f"{DAMAGED}\"There is no item named 'counts.npy' in the archive\")"),
                ("idx_obj", "objects", f"{DAMAGED}its names are no array that an index has)"),
                ("idx_len", "a length of 2**60", f"{DAMAGED}it has places that cannot be)"),
                ("idx_shard7", "a shard that there is not", f"{DAMAGED}it names shards that there are not)"),
                ("idx_none", "no images", f"{DAMAGED}it says that there are 0 records"),
                ("idx_path", "a shard in another folder", f"{DAMAGED}'../../x' can be no shard)"),
            )
        },
        "index in training": ((*TRAIN, "--config.data_dir={bad}/idx_text"), 1, DAMAGED),
        "index of another length in training": (
            (*TRAIN, "--config.data_dir={bad}/idx_len"), 1, "convert again with --overwrite",
        ),
        "note that is no JSON": (
            ("scripts/inspect_dataset.py", "--dataset=mine", "--data_dir={bad}/note_bad"), 1, "conversion.json is not JSON: convert again",
        ),
        "note without a class map": (
            ("scripts/inspect_dataset.py", "--dataset=mine", "--data_dir={bad}/note_nomap"), 1, "class_map is missing",
        ),
        "note of a later version": (
            (*CONVERT, "--dataset=gta5", "--data_dir={bad}/note_later"), 1, "format=3 is unknown to this version",
        ),
        "shard that is gone": ((*INSPECT, "--data_dir={bad}/shard_gone"), 1, "-00000-of-00001 is missing)"),
        "sheet over a file of somebody else": (
            ("scripts/inspect_dataset.py", "--dataset=gta5", "--data_dir={data}", "--output={photo}"), 1,
            "--output={photo} is there already and was not made by fada-jax",
        ),
        "sheet that is a folder": (
            ("scripts/inspect_dataset.py", "--dataset=gta5", "--data_dir={data}", "--output={bad}"), 1,
            "--output={bad} is a folder",
        ),
        "sheet larger than memory": (
            (*INSPECT, "--data_dir={data}", "--images=1000", "--width=4096"), 1, "--images and --width make a sheet of",
        ),
        "path for a data set": (
            (*EVALUATE, "--dataset=../data/gta5"), 1, "data set '../data/gta5' can be no name",
        ),
        "path for a split": ((*EVALUATE, "--split=../val"), 1, "split '../val' can be no name"),
        "path for a data set to inspect": (
            ("scripts/inspect_dataset.py", "--data_dir={data}", "--dataset=../data/gta5"), 1,
            "--dataset '../data/gta5' can be no name",
        ),
        "path for a city": ((*INSPECT, "--data_dir={data}", "--city=.."), 1, "--city '..' can be no name"),
    },
}  # fmt: skip

CLASS_MAP = {"classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [3]}]}


def bad_trees(bad):
    """Raw data with one mistake each."""
    exif = Image.Exif()
    exif[0x0112] = 3
    ids = Image.fromarray(raw_trees.ids(3, 36, 64, 35))
    saved = {
        "label_jpeg": (ids, {"format": "jpeg"}),
        "label_alpha": (ids.convert("LA"), {}),
        "label_animated": (ids, {"save_all": True, "append_images": [ids.point(lambda x: 0)]}),
        "label_turned": (ids, {"exif": exif}),
    }
    others = (
        "label_rgb16",
        "label_flipped",
        "label_pipe",
        "image_pipe",
        "image_device",
        "image_twice",
        "image_newline",
    )
    for name in (*saved, *others):
        root = raw_trees.gta5(bad / name, 3)
        image, label = (root / folder / "00003.png" for folder in ("images", "labels"))
        if name in saved:
            picture, options = saved[name]
            picture.save(label, **{"format": "png", **options})
        elif name == "label_rgb16":
            label.write_bytes(raw_trees.png16(np.ones((36, 64, 3), np.uint16)))
        elif name == "label_flipped":
            content = bytearray(label.read_bytes())
            content[-30] ^= 4
            label.write_bytes(content)
        elif name.endswith("pipe"):
            path = label if name.startswith("label") else image
            path.unlink()
            os.mkfifo(path)
        elif name == "image_device":
            image.unlink()
            image.symlink_to("/dev/zero")
        elif name == "image_twice":
            shutil.copy(image, image.with_suffix(".jpg"))
        else:
            shutil.copy(image, image.with_name("a\nb.png"))
    for name, bits, value in (("four_bits", 4, 7), ("one_bit", 1, 0)):
        raw_trees.folder(bad / name, "train", 1, None)
        path = bad / name / "train" / "labels" / "street_0.png"
        path.parent.mkdir()
        path.write_bytes(raw_trees.grey_png(np.full((20, 30), value, np.uint8), bits))
    for name, split in (("split_all", "all"), ("split_blank", "my train")):
        raw_trees.folder(bad / name, split, 1, None)
    raw_trees.gta5(bad / "other_images", 5)


def copy_of(places, name):
    """A copy of the converted gta5; returns its folder."""
    shutil.copytree(places["data"] / "gta5", places["bad"] / name / "gta5")
    return places["bad"] / name / "gta5" / "1.0.0"


def bad_indexes(places):
    """Converted data whose index was changed."""
    contents = {"idx_empty": b"", "idx_text": b"hello\n", "idx_trunc": None}
    for name, content in contents.items():
        path = copy_of(places, name) / "train_index.npz"
        path.write_bytes(path.read_bytes()[:500] if content is None else content)
    for name in ("idx_nokey", "idx_obj", "idx_len", "idx_shard7", "idx_none", "idx_path"):
        path = copy_of(places, name) / "train_index.npz"
        with np.load(path) as index:
            values = dict(index)
        if name == "idx_nokey":
            del values["counts"]
        elif name == "idx_obj":
            values["names"] = values["names"].astype(object)
        elif name == "idx_len":
            values["records"][2, 2] = 2**60
        elif name == "idx_shard7":
            values["records"][:, 0] = 7
        elif name == "idx_none":
            values |= {key: values[key][:0] for key in ("records", "names", "counts")}
        else:
            values["shards"] = np.array(["../../x"])
        np.savez_compressed(path, **values)


def make(places):
    bad = places["bad"]
    (bad / "map.json").write_text(json.dumps(CLASS_MAP))
    (bad / "moved.json").write_text(json.dumps({"classes": [{"name": "a", "ids": [3]}, {"name": "b", "ids": [1]}]}))
    bad_trees(bad)
    bad_indexes(places)
    for name in ("their_file", "note_later", "shard_gone", "shard_cut"):
        root = copy_of(places, name)
        (shard,) = root.glob("*.tfrecord*")
        if name == "their_file":
            (root / "thesis.tex").write_text("mine")
        elif name == "note_later":
            (root / "conversion.json").write_text('{"format": 3}')
        elif name == "shard_gone":
            shard.unlink()
        else:
            shard.write_bytes(shard.read_bytes()[:-100])
    for name, path in (
        ("their_list", "gta5_errors.txt"),
        ("their_folder", "gta5/1.0.0/thesis.tex"),
        ("their_partial", "gta5/.1.0.0.partial/thesis.tex"),
    ):
        (bad / name / path).parent.mkdir(parents=True)
        (bad / name / path).write_text("mine")
    own = bad / "own_data"
    request = conversion.Conversion(
        "folder", places["raw"] / "folder", name="mine", class_map={"name": "map", **CLASS_MAP}
    )
    conversion.convert(request, own)
    for name in ("note_bad", "note_nomap"):
        shutil.copytree(own, bad / name)
        note = bad / name / "mine" / "1.0.0" / "conversion.json"
        values = {key: value for key, value in json.loads(note.read_text()).items() if key != "class_map"}
        note.write_text("{" if name == "note_bad" else json.dumps(values))
    return {"own_data": own}
