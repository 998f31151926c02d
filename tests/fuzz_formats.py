"""Valid files of every stored format, what may be changed in them, and the readers that must read or refuse the result.

A change knows the structure: one field of a document, one array of an index, one record; or some bytes anywhere. Where
checksums would notice it, they are made again, so that the checks behind them are tried, too.
"""

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import raw_trees
from hypothesis import strategies as st

from fada_jax import classes, documents
from fada_jax import config as schema
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, pseudo_labels, records, streams
from fada_jax.interop import artifacts, reading, stablehlo, torch_files
from fada_jax.reporting import page
from fada_jax.stages import beginning, program
from fada_jax.training import checkpoints, checksums, saving

EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\xff" * 3 + b"\x7f", b"\x80" + bytes(3), bytes(3) + b"\x80"]
NUMBERS = (
    st.sampled_from([0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64, 0.5, 1e300, -0.0])
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | st.sampled_from(["../x", "/dev/zero", "gs://b", "nan"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def places(values, at=()):
    """The way to every value in a document."""
    yield at
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def put(values, at, new, remove=False):
    """A copy of a document with another value at one place, or without it."""
    if not at:
        return new
    copy = dict(values) if isinstance(values, dict) else list(values)
    if len(at) == 1 and remove:
        del copy[at[0]]
    elif len(at) == 1:
        copy[at[0]] = new
    else:
        copy[at[0]] = put(copy[at[0]], at[1:], new, remove)
    return copy


@st.composite
def changed_document(draw, text):
    """A JSON document with a field changed, removed, added or doubled, as text."""
    values = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(list(places(values))))
        kind = draw(st.sampled_from(["change", "remove", "add", "swap"]))
        if kind == "remove" and at:
            values = put(values, at, None, remove=True)
        elif kind == "swap":
            other = draw(st.sampled_from(list(places(values))))
            inner = values
            for key in other:
                inner = inner[key]
            values = put(values, at, json.loads(json.dumps(inner)))
        elif kind == "add":
            values = put(values, (*at[:-1], draw(st.text(max_size=4))), draw(JSON)) if at and isinstance(
                at[-1], str
            ) else draw(JSON)  # fmt: skip
        else:
            values = put(values, at, draw(JSON))
    text = json.dumps(values)
    return text if draw(st.integers(0, 9)) else "[" * 5000 + text


@st.composite
def damaged_bytes(draw, content):
    """A file's bytes after one to six changes anywhere."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["flip", "extreme", "cut", "copy", "remove"]))
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 64))
        if kind == "flip" and content:
            content[at] ^= draw(st.integers(1, 255))
        elif kind == "extreme":
            content[at : at + 4] = draw(st.sampled_from(EXTREMES))
        elif kind == "cut":
            del content[at:]
        elif kind == "copy":
            to = draw(st.integers(0, max(len(content) - 1, 0)))
            content[to:to] = content[at : at + length]
        else:
            del content[at : at + length]
    return bytes(content)


@st.composite
def changed_array(draw, array):
    """An array of another type or shape, or with other values."""
    kind = draw(st.sampled_from(["type", "shape", "value", "empty", "text", "objects", "axis"]))
    if kind == "type":
        dtype = draw(
            st.sampled_from(["int8", "uint8", "float32", "float64", "bool", "complex64", "<U4", "S3", "int32"])
        )
        return array.astype(dtype) if array.dtype.kind in "biuf" or dtype in ("<U4", "S3") else np.zeros(3, dtype)
    if kind == "shape":
        return array[: draw(st.integers(0, max(len(array) - 1, 0)))] if array.ndim else array[None]
    if kind == "empty":
        return array[:0] if array.ndim else array
    if kind == "text":
        return np.array(
            draw(st.lists(st.sampled_from(["", "../../x", "/dev/zero", "x" * 400, "ü"]), min_size=1, max_size=4))
        )
    if kind == "objects":
        return np.array([{"a": 1}, None], object)
    if kind == "axis":
        return array[..., None]
    array = array.copy()
    if not array.size:
        return array
    at = draw(st.integers(0, array.size - 1))
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        array.flat[at] = draw(st.sampled_from([limits.min, limits.max, 0, 1, limits.max // 2]))
    elif array.dtype.kind == "f":
        array.flat[at] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0, 1e38]))
    elif array.dtype.kind == "U":
        array = array.astype("<U16")
        array.flat[at] = draw(st.sampled_from(["", "..", "a/b", "\0", "other"]))
    return array


def change_npz(draw, path):
    """One array of an archive changed, gone, or under another name."""
    with np.load(path) as file:
        arrays = dict(file)
    name = draw(st.sampled_from(sorted(arrays)))
    kind = draw(st.sampled_from(["change", "change", "remove", "rename"]))
    if kind == "change":
        arrays[name] = draw(changed_array(arrays[name]))
    else:
        array = arrays.pop(name)
        if kind == "rename":
            arrays[draw(st.sampled_from(["other", "", "a/../b"]))] = array
    np.savez(path, **arrays)


def change_bytes(draw, path):
    path.write_bytes(draw(damaged_bytes(path.read_bytes())))


def change_json(draw, path):
    path.write_text(draw(changed_document(path.read_text())))


def pick(draw, folder, pattern="*"):
    return draw(st.sampled_from(sorted(p for p in folder.rglob(pattern) if p.is_file())))


def sum_again(folder):
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    checksums.write(folder)


@dataclasses.dataclass(frozen=True)
class Format:
    """A stored format.

    Attributes:
      make: writes a valid original, a file or a folder of this name, and returns it.
      change: makes one change to a copy, drawing its choices.
      read: reads it as the package does; it raises a UserError or returns.
    """

    make: Callable
    change: Callable
    read: Callable


# Checkpoints, manifests, configs --------------------------------------------------------------------------------------


def make_checkpoint(root):
    config = schema.read(narrow_config())
    states = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), program.state_shapes(config))
    meta = saving.make_meta(config.plain(), config.model, config.preprocessing, config.classes)
    with saving.writing(root / "w", meta, wait=True) as save:
        save(3, states)
    beginning.own(config, root / "w", beginning.Begun(None, None, {}), {})
    return root / "w"


def narrow_config():
    from test_bad_inputs import tiny_config

    config = tiny_config()
    config.model.widths, config.model.stem_width, config.model.norm = (8, 8, 8, 8), 8, "frozen"
    return config


def change_checkpoint(draw, workdir):
    checkpoint = workdir / "checkpoints" / "3"
    kind = draw(st.sampled_from(["meta", "meta", "meta", "manifest", "bytes", "sums", "name"]))
    if kind == "meta":
        change_json(draw, checkpoint / "meta" / "metadata")
        sum_again(checkpoint)
    elif kind == "manifest":
        change_json(draw, workdir / "manifest.json")
    elif kind == "bytes":
        change_bytes(draw, pick(draw, checkpoint))
    elif kind == "sums":
        change_bytes(draw, checkpoint / "SHA256SUMS")
    else:
        checkpoint.rename(checkpoint.with_name(draw(st.sampled_from(["²", "-3", "03", "9" * 30, "4", " 3", "3 "]))))


def read_checkpoint(workdir):
    model = checkpoints.load_model(workdir)
    schema.stored(model.config, model.spec.num_classes)
    beginning.check(schema.read(narrow_config()), workdir, data_sets=False)


# Weight files and artifacts -------------------------------------------------------------------------------------------


def make_weights(root):
    from fada_jax.interop import exporting

    workdir = make_checkpoint(root)
    exporting.export_file(workdir, root / "w.safetensors")
    shutil.rmtree(workdir)
    return root / "w.safetensors"


def change_weights(draw, path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + length].decode(), data[8 + length :]
    values = json.loads(header)
    kind = draw(st.sampled_from(["meta", "meta", "header", "rename", "bytes"]))
    if kind == "bytes":
        return change_bytes(draw, path)
    if kind == "header":
        header = draw(changed_document(header))
    elif kind == "rename":
        names = [name for name in values if name != "__metadata__"]
        values[draw(st.sampled_from([*names[:9], "params.x", "", "classifier"]))] = values.pop(
            draw(st.sampled_from(names))
        )
        header = json.dumps(values)
    else:
        meta = values["__metadata__"]
        key = draw(st.sampled_from(sorted(meta)))
        meta[key] = draw(changed_document(meta[key])) if meta[key].startswith("{") else draw(st.text(max_size=9))
        header = json.dumps(values)
    encoded = header.encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + rest)


def read_weights(path):
    torch_files.read_file(path)
    reading.read_model(path)


def make_artifact(root):
    workdir = make_checkpoint(root)
    stablehlo.export_model(checkpoints.load_model(workdir), root / "artifact")
    shutil.rmtree(workdir)
    return root / "artifact"


def change_artifact(draw, folder):
    kind = draw(st.sampled_from(["description", "description", "weights", "bytes", "sums", "lost", "swapped"]))
    if kind == "description":
        change_json(draw, folder / "model.json")
        sum_again(folder)
    elif kind == "weights":
        change_npz(draw, folder / "weights.npz")
        sum_again(folder)
    elif kind == "bytes":
        change_bytes(draw, pick(draw, folder))
    elif kind == "sums":
        change_bytes(draw, folder / "SHA256SUMS")
    elif kind == "lost":
        pick(draw, folder).unlink()
    else:
        one, two = pick(draw, folder), pick(draw, folder)
        one.write_bytes(two.read_bytes())
        if draw(st.booleans()):
            sum_again(folder)


# Data -----------------------------------------------------------------------------------------------------------------


def make_data(root):
    class_map = {"name": "mine", "classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [2]}], "ignored_ids": [0]}
    raw_trees.folder(root / "raw", "train", 3, np.ones((20, 30), np.uint8))
    asked = conversion.Conversion("folder", root / "raw", name="mine", class_map=class_map)
    conversion.convert(asked, root / "data")
    shutil.rmtree(root / "raw")
    return root / "data"


def change_data(draw, data_dir):
    folder = records.folder(data_dir, "mine")
    kind = draw(st.sampled_from(["note", "note", "index", "index", "bytes", "lost", "stray"]))
    if kind == "note":
        change_json(draw, folder / "conversion.json")
    elif kind == "index":
        change_npz(draw, next(folder.glob("*_index.npz")))
    elif kind == "bytes":
        change_bytes(draw, pick(draw, folder))
    elif kind == "lost":
        pick(draw, folder).unlink()
    else:
        (folder / draw(st.sampled_from([".DS_Store", "val_index.npz", "x.tfrecord-00000-of-00001"]))).write_bytes(b"x")


def read_data(data_dir):
    from fada_jax.input_pipeline.stream import Stream

    class_set = classes.ClassSet("mine", ("a", "b"), ((0, 0, 0), (9, 9, 9)))
    stream = Stream("mine", "train", (16, 16), sampling="balanced")
    streams.check(data_dir, stream, class_set)
    for image, label in streams.examples(data_dir, stream, class_set, range(streams.num_examples(data_dir, stream))):
        assert image.dtype == np.uint8 and (label is None or label.shape == image.shape[:2])
    records.verify(records.folder(data_dir, "mine"))


# Pseudo labels --------------------------------------------------------------------------------------------------------

ORIGIN = {
    "teacher": "0" * 64, "teacher_step": 3, "classes": ["a", "b"], "selection": {"keep": 0.5, "relative": False},
    "scales": [1.0], "teacher_size": [16, 16], "label_size": [12, 10], "images": ["mine", "", "train"], "num_images": 4,
}  # fmt: skip


def make_pseudo_labels(root):
    rng = np.random.default_rng(0)
    labels = [(f"image{i}", rng.integers(0, 2, (10, 12)).astype(np.uint8)) for i in range(4)]
    pseudo_labels.write(root / "p.tfrecord", labels, ORIGIN)
    return root / "p.tfrecord"


def change_pseudo_labels(draw, path):
    import tensorflow as tf

    if draw(st.booleans()):
        return change_bytes(draw, path)
    payloads = [bytes(x) for x in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    kind = draw(st.sampled_from(["origin", "lost", "twice", "order", "payload"]))
    at = draw(st.integers(0, len(payloads) - 1))
    if kind == "origin":
        example = tf.train.Example.FromString(payloads[0])
        values = example.features.feature["provenance"].bytes_list.value
        values[0] = draw(changed_document(values[0].decode())).encode()
        payloads[0] = example.SerializeToString()
    elif kind == "lost":
        del payloads[at]
    elif kind == "twice":
        payloads.insert(at, payloads[at])
    elif kind == "order":
        payloads.reverse()
    else:
        payloads[at] = draw(damaged_bytes(payloads[at]))
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)


def read_pseudo_labels(path):
    pseudo_labels.provenance(path)
    labels = pseudo_labels.PseudoLabels(path, 2)
    for number in range(4):
        values = np.asarray(labels.read(f"image{number}"))
        assert set(np.unique(values)) <= {0, 1, 255}


# Results and class maps -----------------------------------------------------------------------------------------------


def make_results(root):
    workdir = root / "recipe"
    for stage in ("source", "adaptation"):
        (workdir / stage).mkdir(parents=True)
        (workdir / stage / "config.json").write_text(json.dumps(schema.read(narrow_config()).plain()))
        lines = [{"step": step, "loss_seg": 1.0 / step, "steps_per_second": 2.0} for step in (10, 20)]
        (workdir / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = classes.get_class_set("cityscapes19").names
    score = {
        "miou": 20.0, "accuracy": 50.0, "iou": dict.fromkeys(names, 20.0), "num_images": 5, "class_set": "cityscapes19",
        "scored_at": "48x24", "dataset": "cityscapes", "split": "val", "multi_scale": False, "checkpoint_step": 20,
        "dtype": "float32",
    }  # fmt: skip
    rows = [{"name": "source_only", **score}, {"name": "adapted", **score, "miou": 30.0}]
    (workdir / "results.json").write_text(json.dumps({"config": "x.py", "seed": 0, "overrides": {}, "rows": rows}))
    confusion = np.eye(len(names), dtype=int).tolist()
    (workdir / "confusion.json").write_text(json.dumps({"source_only": confusion, "adapted": confusion}))
    return workdir


def change_results(draw, workdir):
    path = pick(draw, workdir, "*.json*")
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        lines[draw(st.integers(0, 1))] = draw(changed_document(lines[0]))
        path.write_text("\n".join(lines))
    elif draw(st.integers(0, 3)):
        change_json(draw, path)
    else:
        change_bytes(draw, path)


def read_results(workdir):
    page.page([workdir])


def make_class_map(root):
    entries = [{"name": "a", "ids": [1, 2], "color": [1, 2, 3]}, {"name": "b", "ids": [3]}]
    (root / "map.json").write_text(json.dumps({"name": "mine", "classes": entries, "ignored_ids": [0]}))
    return root / "map.json"


def read_class_map(path):
    values = classes.read_class_map(path)
    class_set, encoding = classes.parse_class_map(values, path)
    classes.label_table("mine", class_set, encoding)


def make_config(root):
    (root / "config.json").write_text(json.dumps(schema.read(narrow_config()).plain()))
    return root / "config.json"


def read_config(path):
    values = documents.read(path)
    if not isinstance(values, dict):
        raise UserError("no config")
    config = schema.stored(values, 19)
    beginning.check(config, path.with_name("nothing"), data_sets=False)


FORMATS = {
    "checkpoints": Format(make_checkpoint, change_checkpoint, read_checkpoint),
    "weight descriptions": Format(make_weights, change_weights, read_weights),
    "artifacts": Format(make_artifact, change_artifact, artifacts.load_artifact),
    "converted data": Format(make_data, change_data, read_data),
    "pseudo labels": Format(make_pseudo_labels, change_pseudo_labels, read_pseudo_labels),
    "results": Format(make_results, change_results, read_results),
    "class maps": Format(make_class_map, change_json, read_class_map),
    "configs": Format(make_config, change_json, read_config),
}


def copied(original, work):
    """A copy of an original, file or folder, in the empty folder ``work``."""
    target = work / original.name
    if original.is_dir():
        shutil.copytree(original, target)
    else:
        shutil.copy(original, target)
    return Path(target)
