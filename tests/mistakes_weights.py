"""Mistakes with weight files and artifacts, as rows of tests/test_bad_inputs.py."""

import json
import os
import shutil
import struct
import zipfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fada_jax.interop import exporting, stablehlo, torch_tables
from fada_jax.models import ModelSpec
from fada_jax.training import checkpoints, checksums

PREDICT = ("-m", "fada_jax.predict", "--out={new}/out", "{photo}")
WEIGHTS = ("-m", "fada_jax.convert_weights")
ABOUT = "its metadata"
KERNEL = "params.classifier.conv0.kernel"


def imported(name, message):
    return (*WEIGHTS, "import", "--output={new}/w", f"--input={{weights}}/{name}"), 1, f"{name}: {message}"


def predicted(name, message):
    return (*PREDICT, f"--workdir={{weights}}/{name}"), 1, f"{name}: {message}"


def run(name, message):
    return (*PREDICT, f"--workdir={{artifacts}}/{name}"), 1, message


def exported(output, message):
    return (*WEIGHTS, "export", "--workdir={good}", f"--output={output}"), 1, message


ROWS = {
    "what a weight file says about itself": {
        "fewer classes": predicted("meta_class5.safetensors", f"{ABOUT}: its model has 19 classes, its class set"),
        "fewer classes, imported": imported("meta_class5.safetensors", f"{ABOUT}: its model has 19 classes, its class"),
        "lists as deep as a well": predicted("meta_deep.safetensors", f"{ABOUT} is not JSON (recursion limit exceeded"),
        "size that is a text": predicted("meta_evalsize.safetensors", f"{ABOUT}: config: eval.size='abc' must be"),
        "unknown field": predicted("meta_extra.safetensors", f"{ABOUT}: model.evil is unknown"),
        "format of the future": predicted("meta_format99.safetensors", f"{ABOUT}: format=99 is unknown to this version"),
        "list instead of an object": predicted("meta_list.safetensors", f"{ABOUT}: what it says about its model must"),
        "no config": predicted("meta_noconfig.safetensors", f"{ABOUT}: config is missing"),
        "no model": predicted("meta_nomodel.safetensors", f"{ABOUT}: model is missing"),
        "no step": predicted("meta_nostep.safetensors", f"{ABOUT}: checkpoint_step is missing: export it again"),
        "not JSON": predicted("meta_notjson.safetensors", f"{ABOUT} is not JSON"),
        "not JSON, imported": imported("meta_notjson.safetensors", f"{ABOUT} is not JSON"),
        "backbone that nobody knows": predicted("meta_backbone.safetensors", f"{ABOUT}: model.backbone='nope' must be"),
        "more blocks than atoms": predicted("meta_blocks.safetensors", f"{ABOUT}: model.stage_sizes=(1, 1, 1, 10000000"),
        "division by nothing": predicted("meta_std0.safetensors", f"{ABOUT}: preprocessing.std=(0.0, 1.0, 1.0) must be"),
    },
    "tensors of a .safetensors file": {
        "8-bit floats": predicted("f8.safetensors", "x is of type F8_E4M3, which is not read: save it as F32"),
        "8-bit floats, imported": imported("f8.safetensors", "x is of type F8_E4M3, which is not read: save it as F32"),
        "one missing": imported("own_missing.safetensors", f"the file lacks {KERNEL}"),
        "one missing, predicting": predicted("own_missing.safetensors", f"the file lacks {KERNEL}"),
        "another shape": imported("own_shape.safetensors", f"{KERNEL} has shape (1,"),
        "one too many": imported("own_extra.safetensors", "the file holds params.foreign, unknown to the model"),
        "one too many, predicting": predicted("own_extra.safetensors", "the file holds params.foreign, unknown to the"),
        "whole numbers": imported("own_int.safetensors", f"{KERNEL} is not an array of floating-point numbers, but of in"),
        "whole numbers, predicting": predicted("own_int.safetensors", f"{KERNEL} is not an array of floating-point numb"),
        "not a number": imported("own_nan.safetensors", f"{KERNEL} holds a NaN or an infinity"),
        "not a number, predicting": predicted("own_nan.safetensors", f"{KERNEL} holds a NaN or an infinity"),
        "too large for float32": predicted("own_large.safetensors", f"{KERNEL} holds a NaN or an infinity"),
        "tensor and folder of one name": predicted("own_conflict.safetensors", "the file holds params.classifier.conv0,"),
        "other names": predicted("renamed.safetensors", "its tensors do not have the names that export gives them (x."),
        "section that is a tensor": predicted("section.safetensors", "feature_extractor is a tensor, and feature_extr"),
        "header longer than the file": (
            (*PREDICT, "--workdir={weights}/long.safetensors"), 1, "safetensors file: a header of 4611686018427387904 b",
        ),
    },
    "PyTorch files": {
        "negative iteration": imported("iter_neg.pth", "its iteration is -5, not a whole number of steps"),
        "huge iteration": imported("iter_huge.pth", "its iteration is 100000000000"),
        "iteration that is no number": imported("iter_nan.pth", "its iteration is nan, not a whole number"),
        "iteration of several numbers": imported("iter_tensor.pth", "its iteration is array([1., 2.]"),
        "iteration in words": imported("iter_text.pth", "its iteration is 'abc', not a whole number of steps"),
        "iteration in words, predicting": predicted("iter_text.pth", "its iteration is 'abc', not a whole number"),
        "lists in lists without end": imported("laughs.pth", "x.0.0 is nested more than 32 levels deep or holds itself"),
        "list that holds itself": imported("recursive.pth", "x.0.0 is nested more than 32 levels deep or holds itself"),
        "tensor without values": imported("meta.pth", "feature_extractor.x is on the device 'meta', without values"),
        "quantised tensor": imported("quant.pth", "feature_extractor.x is quantised: save it as a plain float32 tensor"),
        "sparse tensor": imported("sparse.pth", "feature_extractor.x is sparse: save it as a plain float32 tensor"),
        "tensor of 8-bit floats": imported("f8.pth", "feature_extractor.x is of type float8_e4m3fn, which is not read"),
        "tensor larger than its file": imported("expand.pth", "feature_extractor.x repeats the same values, as expand"),
        "compressed members": (
            (*WEIGHTS, "import", "--output={new}/w", "--input={weights}/bomb.pth"), 1,
            "bomb.pth is no readable PyTorch checkpoint: its member 'bomb/data.pkl' is compressed, save it as it was mad",
        ),
        "named pipe": (
            (*WEIGHTS, "import", "--output={new}/w", "--input={weights}/pipe.pth"), 1, "pipe.pth is a named pipe, not a",
        ),
        "named pipe, predicting": ((*PREDICT, "--workdir={weights}/pipe.pth"), 1, "pipe.pth is a named pipe, not a fi"),
        "device": ((*PREDICT, "--workdir={weights}/zero.safetensors"), 1, "zero.safetensors is a device, not a file"),
        "folder": (
            (*WEIGHTS, "import", "--output={new}/w", "--input={weights}/folder.pth"), 1, "folder.pth is a folder, not a",
        ),
        "suffix .pt": imported("x.pt", "the name of a weight file ends in .pth or .safetensors: rename it by what it is"),
        "suffix .pt, predicting": predicted("x.pt", "the name of a weight file ends in .pth or .safetensors: rename it"),
        "suffix .PTH, predicting": predicted("x.PTH", "the name of a weight file ends in .pth or .safetensors: rename"),
    },
    "artifacts": {
        "edited by hand": run("edited", "edited is damaged (model.json is not as it was written): export it again"),
        "without its checksums": run("unsummed", "unsummed is damaged (SHA256SUMS is missing): export it again"),
        "without its weights": run("weightless", "is no whole artifact of fada_jax.export: weights.npz is missing"),
        "impossible colours": run("bad_colors", "model.json: class_set.colors[0][0]=999 must be at most 255: export it"),
        "fewer classes": run("fewer_classes", "model.json: its model has 19 classes, its class set 'cityscapes19' 5"),
        "fewer classes everywhere": run("five", "probabilities.stablehlo gives 19 classes, model.json names 5"),
        "torn function": run("flip_hlo", "probabilities.stablehlo is no readable function of jax.export"),
        "names that are a text": run("names_str", "model.json: class_set.names='abc' must be of type"),
        "weights that are no numbers": run("nan_weights", "does not fit probabilities.stablehlo: params/classifier/conv0"),
        "no input size": run("no_input_size", "model.json: input_size is missing: export it again"),
        "no scales": run("no_scales", "model.json: scales is missing: export it again"),
        "no step": run("no_step", "model.json: checkpoint_step is missing: export it again"),
        "size of one number": run("size_int", "model.json: input_size=64 must be (width, height)"),
        "functions swapped": run("swapped", "probabilities.stablehlo is not the function 'probabilities' of an artifact"),
        "weights missing": run("weights_missing_key", "weights.npz does not fit probabilities.stablehlo: the file lacks"),
        "weights of another shape": run("weights_shape", "weights.npz does not fit probabilities.stablehlo: params/"),
        "pickled weights": run("pickled", "weights.npz cannot be read: Object arrays cannot be loaded when allow_pickle"),
        "compressed weights": run("compressed", "weights.npz cannot be read: its member"),
        "for other machines": run("platforms", "platforms was exported for tpu, this is cpu: export it again"),
        "description that is a pipe": run("pipe", "model.json is a named pipe, not a file"),
        "format of the future": run("format99", "model.json: format=99 is unknown to this version, which reads 1 to 2"),
        "checkpoint of an artifact": (
            (*PREDICT, "--workdir={artifacts}/edited", "--checkpoint=900"), 1, "edited holds one model alone, choose a",
        ),
        "checkpoint of a checkpoint": (
            (*PREDICT, "--workdir={good}/checkpoints/3", "--checkpoint=12345"), 1, "checkpoints/3 holds one model alone",
        ),
    },
    "outputs of weights": {
        "file of somebody else": exported("{weights}/mine.safetensors", "mine.safetensors is there already and was not m"),
        "PyTorch file of somebody else": exported("{weights}/iter_neg.pth", "iter_neg.pth is there already and was not"),
        "folder instead of a file": exported("{weights}/folder.pth", "folder.pth is a folder: name a file"),
        "below a file": exported("{weights}/x.pt/m.safetensors", "x.pt is not a folder"),
        "export onto a file": (
            ("-m", "fada_jax.export", "--workdir={good}", "--output={weights}/x.pt"), 1, "x.pt is there already and was",
        ),
        "export onto a folder": (
            ("-m", "fada_jax.export", "--workdir={good}", "--output={weights}/folder.pth"), 1, "folder.pth is there alr",
        ),
        "import into a folder of other things": (
            (*WEIGHTS, "import", "--input={weights}/x.pt", "--output={artifacts}/edited"), 1, "edited holds README.md, SHA2",
        ),
        "import onto a file": (
            (*WEIGHTS, "import", "--input={weights}/x.pt", "--output={weights}/x.pt"), 1, "x.pt is a file: the workdir",
        ),
        "import into a workdir": (
            (*WEIGHTS, "import", "--input={weights}/x.pt", "--output={good}"), 1, "holds checkpoints already: choose ano",
        ),
    },
}  # fmt: skip


def make(places):
    """Makes the files and artifacts of the rows from the workdir ``good``."""
    weights, artifacts = places["bad"] / "weights", places["bad"] / "artifacts"
    weights.mkdir()
    artifacts.mkdir()
    exporting.export_file(places["good"], weights / "good.safetensors", "6")
    make_descriptions(weights)
    make_tensors(weights)
    make_torch_files(weights)
    make_artifacts(artifacts, stablehlo.export_model(checkpoints.load_model(places["good"]), artifacts / "good"))
    return {"weights": weights, "artifacts": artifacts}


def read_good(weights):
    """Tensors and description of the good file."""
    with safe_open(weights / "good.safetensors", "np") as file:
        return load_file(weights / "good.safetensors"), json.loads(file.metadata()["fada_jax"])


def make_descriptions(weights):
    tensors, meta = read_good(weights)
    some = {**meta["class_set"], "names": meta["class_set"]["names"][:5], "colors": meta["class_set"]["colors"][:5]}
    texts = {
        "class5": {**meta, "class_set": {**some, "subset_13": []}},
        "evalsize": {**meta, "config": {**meta["config"], "eval": {**meta["config"]["eval"], "size": "abc"}}},
        "extra": {**meta, "model": {**meta["model"], "evil": 1}},
        "format99": {**meta, "format": 99},
        "list": [meta],
        **{f"no{key}": {k: v for k, v in meta.items() if k != key} for key in ("config", "model")},
        "nostep": {key: value for key, value in meta.items() if key != "checkpoint_step"},
        "backbone": {**meta, "model": {**meta["model"], "backbone": "nope"}},
        "blocks": {**meta, "model": {**meta["model"], "stage_sizes": [1, 1, 1, 10**12]}},
        "std0": {**meta, "preprocessing": {**meta["preprocessing"], "std": [0.0, 1.0, 1.0]}},
    }
    for name, values in texts.items():
        save_file(tensors, weights / f"meta_{name}.safetensors", {"fada_jax": json.dumps(values)})
    for name, text in (("deep", "[" * 100_000), ("notjson", "{nope")):
        save_file(tensors, weights / f"meta_{name}.safetensors", {"fada_jax": text})


def make_tensors(weights):
    tensors, meta = read_good(weights)
    kernel = tensors[KERNEL]
    for name, changed in {
        "own_missing": {key: value for key, value in tensors.items() if key != KERNEL},
        "own_shape": {**tensors, KERNEL: kernel[:1]},
        "own_extra": {**tensors, "params.foreign": np.zeros(2, np.float32)},
        "own_int": {**tensors, KERNEL: kernel.astype(np.int32)},
        "own_nan": {**tensors, KERNEL: kernel * np.nan},
        "own_large": {**tensors, KERNEL: kernel.astype(np.float64) + 1e300},
        "own_conflict": {**tensors, "params.classifier.conv0": kernel},
        "renamed": {f"x.{key}": value for key, value in tensors.items()},
    }.items():
        save_file(changed, weights / f"{name}.safetensors", {"fada_jax": json.dumps(meta)})
    one = np.zeros(1, np.float32)
    save_file({"feature_extractor": one, "feature_extractor.x": one}, weights / "section.safetensors")
    save_file({"x": one}, weights / "mine.safetensors", {"format": "pt"})
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (weights / "f8.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    (weights / "long.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)


def released(**values):
    """The names of a released ResNet-18, of which no tensor is looked at before the iteration."""
    spec = ModelSpec("resnet18", 19)
    contents = {}
    for entry in torch_tables.generator_table(spec):
        shape = (19,) if entry.key.endswith("list.0.bias") else (1,)
        contents.setdefault(entry.section, {})[entry.key] = torch.ones(shape)
    return {**contents, **values}


def nested(depth):
    """Lists that hold another list twice, and so on: small in a file, without end when written out."""
    lists = [0.0]
    for _ in range(depth):
        lists = [lists, lists]
    return lists


def make_torch_files(weights):
    for name, value in {
        "neg": -5, "huge": 10**30, "nan": float("nan"), "tensor": torch.tensor([1.0, 2.0]), "text": "abc",
    }.items():  # fmt: skip
        torch.save(released(iteration=value), weights / f"iter_{name}.pth")
    recursive = []
    recursive.append(recursive)
    torch.save({"x": nested(40)}, weights / "laughs.pth")
    torch.save({"x": recursive}, weights / "recursive.pth")
    for name, tensor in {
        "meta": torch.empty(3, device="meta"),
        "quant": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "f8": torch.ones(3).to(torch.float8_e4m3fn),
        "expand": torch.zeros(1, dtype=torch.float16).expand(2**40),
    }.items():
        torch.save({"feature_extractor": {"x": tensor}}, weights / f"{name}.pth")
    torch.save({"x": torch.zeros(10**6)}, weights / "bomb.pth")
    with zipfile.ZipFile(weights / "bomb.pth") as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(weights / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    for name in ("x.pt", "x.PTH"):
        torch.save(released(), weights / name)
    os.mkfifo(weights / "pipe.pth")
    (weights / "zero.safetensors").symlink_to("/dev/zero")
    (weights / "folder.pth").mkdir()


def make_artifacts(artifacts, good):
    described = json.loads((good / "model.json").read_text())
    kinds = described["class_set"]
    five = {**kinds, "names": kinds["names"][:5], "colors": kinds["colors"][:5], "subset_13": []}
    with np.load(good / "weights.npz") as file:
        arrays = dict(file)
    kernel = "params/classifier/conv0/kernel"

    def without(values, name):
        return {key: value for key, value in values.items() if key != name}

    def copy(name, values=None, weights=None, *, summed=True):
        folder = artifacts / name
        shutil.copytree(good, folder)
        if values is not None:
            (folder / "model.json").write_text(json.dumps(values))
        if weights is not None:
            np.savez(folder / "weights.npz", **weights)
        if summed:
            checksums.write(folder)
        return folder

    for name, values in {
        "bad_colors": {**described, "class_set": {**kinds, "colors": [[999, 0, 0], *kinds["colors"][1:]]}},
        "fewer_classes": {**described, "class_set": five},
        "five": {**described, "class_set": five, "model": {**described["model"], "num_classes": 5}},
        "names_str": {**described, "class_set": {**kinds, "names": "abc"}},
        "no_input_size": without(described, "input_size"),
        "no_scales": without(described, "scales"),
        "no_step": without(described, "checkpoint_step"),
        "size_int": {**described, "input_size": 64},
        "platforms": {**described, "platforms": ["tpu"]},
        "format99": {**described, "format": 99},
    }.items():
        copy(name, values)
    copy("nan_weights", weights={**arrays, kernel: arrays[kernel] * np.nan})
    copy("weights_missing_key", weights=without(arrays, kernel))
    copy("weights_shape", weights={**arrays, kernel: arrays[kernel][:1]})
    copy("pickled", weights={**arrays, kernel: np.array([None])})
    np.savez_compressed(copy("compressed") / "weights.npz", **arrays)
    checksums.write(artifacts / "compressed")
    copy("edited", {**described, "checkpoint_step": 9}, summed=False)
    (copy("unsummed") / "SHA256SUMS").unlink()
    (copy("weightless") / "weights.npz").unlink()
    torn = copy("flip_hlo") / "probabilities.stablehlo"
    torn.write_bytes(torn.read_bytes()[:-2000])
    checksums.write(torn.parent)
    swapped = copy("swapped")
    probabilities, features = ((swapped / f"{name}.stablehlo").read_bytes() for name in ("probabilities", "features"))
    (swapped / "probabilities.stablehlo").write_bytes(features)
    (swapped / "features.stablehlo").write_bytes(probabilities)
    checksums.write(swapped)
    pipe = copy("pipe", summed=False) / "model.json"
    pipe.unlink()
    os.mkfifo(pipe)
