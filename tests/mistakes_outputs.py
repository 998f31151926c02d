"""Mistakes with outputs, pictures and stored results, as rows of tests/test_bad_inputs.py."""

import json
import os
import shutil

import numpy as np
import raw_trees
from PIL import Image
from test_report import make_workdir

from fada_jax import images

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"
PREDICT = ("-m", "fada_jax.predict", "--workdir={good}")
TO_NEW = (*PREDICT, "--out={new}/out")
EVALUATE = ("-m", "fada_jax.evaluate", "--workdir={good}", "--data_dir={data}")
ABLATE = ("scripts/ablate.py", CONFIG, "--config.data_dir={data}")
CCD = ("scripts/ccd.py", "--workdir={good}")
NOT_OURS = "is there already and was not made by fada-jax"
# The report's damaged workdirs: file, what replaces its text (a function of the parsed JSON or a text), what is said.
DAMAGED = {}


def predicted(message, *arguments, status=1):
    return (*TO_NEW, *arguments), status, message


def evaluated(message, *arguments):
    return (*EVALUATE, *arguments), 1, message


def ablated(message, *arguments):
    return (*ABLATE, *arguments), 1, message


def reported(name, file, message, change):
    DAMAGED[name] = file, change
    return ("scripts/report.py", f"--workdir={{reports}}/{name}", "--output={new}/r.html"), 1, f"{name}/{file}{message}"


def changed(*path, value):
    """A function that replaces or, without a value, deletes one field of a document."""

    def change(document):
        *place, last = path
        inner = document
        for key in place:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        return document

    return change


ROWS = {
    "what predict would replace": {
        "ground truth beside an image": (
            (*PREDICT, "--out={outputs}/frames", "{outputs}/frames/x.png"), 1, f"frames/x_label.png {NOT_OURS}",
        ),
        "ground truth in the folder of the images": (
            (*PREDICT, "--out={outputs}/frames", "{outputs}/frames"), 1, f"frames/x_label.png {NOT_OURS}",
        ),
        "file of the name of a submission": (
            (*PREDICT, "--out={outputs}/frames", "--submission", "{outputs}/a_000000_000000_leftImg8bit.png"),
            1, f"frames/a_000000_000000_pred_labelIds.png {NOT_OURS}",
        ),
        "probabilities that somebody else made": (
            (*PREDICT, "--out={outputs}/own", "--save_probabilities", "{photo}"),
            1, f"own/photo_probabilities.npy {NOT_OURS}",
        ),
        "folder of the name of an output": (
            (*PREDICT, "--out={outputs}/taken", "{photo}"), 1, "taken/photo_label.png is a folder",
        ),
        "output folder that is a file": (
            (*PREDICT, "--out={outputs}/note.txt", "{photo}"), 1, "note.txt is not a folder",
        ),
        "output folder below a file": (
            (*PREDICT, "--out={outputs}/note.txt/a/b", "{photo}"), 1, "note.txt is not a folder",
        ),
        "output folder without a name": ((*PREDICT, "--out=", "{photo}"), 1, "--out is empty"),
        "times into a folder": predicted("is a folder: name a file", "{photo}", "--timing={outputs}"),
        "times over another CSV": predicted(NOT_OURS, "{photo}", "--timing={outputs}/other.csv"),
        "times into a pipe": predicted(NOT_OURS, "{photo}", "--timing={outputs}/pipes/f.png"),
    },
    "what predict is told": {
        "overlap that is no number": predicted("--overlap=nan must be from 0 to 0.9", "{photo}", "--overlap=nan"),
        "overlap that is all of a window": predicted("overlap", "{photo}", "--overlap=1", status=2),
        "argument without a name": predicted("an argument is empty", "{photo}", ""),
        "windows of four pixels": predicted("--tile=4x4: must be WIDTHxHEIGHT", "{photo}", "--tile=4x4"),
        "windows of one number": predicted("--tile=512: must be WIDTHxHEIGHT", "{photo}", "--tile=512"),
        "every checkpoint": predicted("--checkpoint=all must be last, best or a step", "{photo}", "--checkpoint=all"),
        "checkpoint that is no digit": predicted("--checkpoint=² must be last, best", "{photo}", "--checkpoint=²"),
        "submission with probabilities": predicted(
            "--submission writes nothing else", "{photo}", "--submission", "--save_probabilities",
        ),
        "nothing but predictions": predicted("nothing but predictions given (1 files)", "{outputs}/own"),
        "named pipe": predicted("f.png: not a readable image (it is a named pipe", "{outputs}/pipes/f.png"),
        "named pipe in a folder": predicted("f.png: not a readable image (it is a named pipe", "{outputs}/pipes"),
        "nothing but named pipes": predicted(
            "none of 1 images can be read; first", "{outputs}/pipes", "--on_error=skip",
        ),
        "folder without a picture": predicted("holds no image", "{outputs}/taken"),
    },
    "outputs of other commands": {
        "scores called .csv": evaluated("--output={new}/s.csv receives JSON", "--output={new}/s.csv"),
        "scores of all called .CSV": evaluated("receives JSON", "--checkpoint=all", "--output={new}/s.CSV"),
        "scores into a folder": evaluated("is a folder: name a file", "--output={outputs}"),
        "scores over another JSON": evaluated(NOT_OURS, "--output={outputs}/other.json"),
        "scores over a text": evaluated(NOT_OURS, "--output={outputs}/note.txt"),
        "scores over a prediction": evaluated(NOT_OURS, "--output={outputs}/own/photo_label.png"),
        "scores below a file": evaluated("note.txt is not a folder", "--output={outputs}/note.txt/s.json"),
        "scores of all beside another CSV": evaluated(
            f"other.csv {NOT_OURS}", "--checkpoint=all", "--output={outputs}/other.js",
        ),
        "report into a folder": (
            ("scripts/report.py", "--workdir={reports}/good", "--output={outputs}"), 1, "is a folder: name a file",
        ),
        "report over a file": (
            ("scripts/report.py", "--workdir={reports}/good", "--output={outputs}/note.txt"), 1, NOT_OURS,
        ),
        "report over the results": (
            ("scripts/report.py", "--workdir={reports}/good", "--output={reports}/good/results.json"), 1, NOT_OURS,
        ),
        "report of one folder twice": (
            ("scripts/report.py", "--workdir={reports}/good", "{reports}/good", "--output={new}/r.html"),
            1, "each folder only once",
        ),
        "distances over another JSON": ((*CCD, "{good}", "--output={outputs}/other"), 1, f"other.json {NOT_OURS}"),
        "distances over a photo": ((*CCD, "{good}", "--output={outputs}/frames/x"), 1, f"x.png {NOT_OURS}"),
        "distances without a name": ((*CCD, "{good}", "--output=."), 1, "--output=.: name the files"),
        "distances of one stage twice": ((*CCD, "{good}", "{good}"), 1, "each only once"),
        "measurement over another JSON": (
            ("scripts/benchmark.py", "input", "--output={outputs}/other.json"), 1, NOT_OURS,
        ),
        "scales that are none": (("scripts/benchmark.py", "infer", "--scales=1,x"), 1, "--scales=1,x: numbers from"),
        "measurement into a folder": (("scripts/measure_input.py", "--output={outputs}"), 1, "is a folder"),
        "reference over another page": (("scripts/config_reference.py", "--output={outputs}/note.txt"), 1, NOT_OURS),
    },
    "ablations": {
        "no seed": ablated("--seeds=: different whole numbers", "--workdir={new}/w", "--seeds="),
        "seed that is no digit": ablated("--seeds=²: different", "--workdir={new}/w", "--seeds=²"),
        "seed twice, written differently": ablated("--seeds=1,01: different", "--workdir={new}/w", "--seeds=1,01"),
        "seed beyond all numbers": ablated("--seeds=9999999999: diff", "--workdir={new}/w", "--seeds=9999999999"),
        "seed missing between commas": ablated("--seeds=0,,1: different", "--workdir={new}/w", "--seeds=0,,1"),
        "split that is not there": ablated("no split 'nope'", "--workdir={new}/w", "--split=nope"),
        "seed's file with garbage": ablated(
            "garbage/seed0/components.json is not JSON", "--workdir={outputs}/garbage", "--seeds=0",
        ),
        "seed's file without scores": ablated(
            "empty/seed0/components.json: scores is missing: delete this file", "--workdir={outputs}/empty", "--seeds=0",
        ),
        "seed's file with a text for a score": ablated(
            "text/seed0/components.json: scores.source_only.miou='x' must be", "--workdir={outputs}/text", "--seeds=0",
        ),
        "seed's file with an unknown row": ablated(
            "row/seed0/components.json: scores.zzz is no row", "--workdir={outputs}/row", "--seeds=0",
        ),
        "workdir that is a file": ablated("note.txt is not a folder", "--workdir={outputs}/note.txt"),
    },
    "files that a report is made of": {
        "results cut short": reported("res_cut", "results.json", " is not JSON", '{"rows": ['),
        "results as deep as a well": reported("res_deep", "results.json", " is not JSON", "[" * 100_000),
        "results with NaN": reported("res_nan", "results.json", " is not JSON", '{"config": "x", "seed": NaN}'),
        "results that are a list": reported("res_list", "results.json", ": (1, 2) must be an object", "[1, 2]"),
        "rows that are no list": reported("rows_dict", "results.json", ": rows={{'a': 1}} must be", changed("rows", value={"a": 1})),
        "no row": reported("rows_none", "results.json", ": rows=() must have 1 or more items: scripts/run_recipe.py", changed("rows", value=[])),
        "row without a name": reported("row_noname", "results.json", ": rows[0].name is missing", changed("rows", 0, "name", value=None)),
        "row without classes": reported("row_noiou", "results.json", ": rows[0].iou is missing", changed("rows", 0, "iou", value=None)),
        "row of other classes": reported("row_other", "results.json", ": rows[1].iou has other classes", changed("rows", 1, "iou", value={"x": 1.0})),
        "row twice": reported("row_twice", "results.json", ": rows[3].name='adapted' is there twice", changed("rows", 0, "name", value="adapted")),
        "score that is a text": reported("miou_str", "results.json", ": rows[0].miou='x' must be", changed("rows", 0, "miou", value="x")),
        "score above 100": reported("miou_101", "results.json", ": rows[0].miou=101 must be at most 100", changed("rows", 0, "miou", value=101)),
        "negative IoU": reported("iou_neg", "results.json", ": rows[0].iou.road=-1 must be at least 0", changed("rows", 0, "iou", "road", value=-1)),
        "script for a number": reported("xss", "results.json", ": seed='<script>alert(1)</script>' must be", changed("seed", value="<script>alert(1)</script>")),
        "overrides that are a list": reported("over_list", "results.json", ": overrides=(1,) must be", changed("overrides", value=[1])),
        "config without a key": reported("cfg_nokey", "source/config.json", ": task is missing", changed("task", value=None)),
        "config with a text for steps": reported("cfg_steps", "source/config.json", ": total_steps='6' must be", changed("total_steps", value="6")),
        "config without a target": reported("cfg_target", "source/config.json", ": target='x' must be", changed("target", value="x")),
        "log that is no text": reported("met_bin", "source/metrics.jsonl", " is no text in UTF-8", b"\xff\xfe\x00"),
        "log cut short": reported("met_cut", "source/metrics.jsonl", " line 1 is not JSON", '{"step": 1, "lo'),
        "log without a step": reported("met_nostep", "source/metrics.jsonl", " line 1: step is missing", '{"loss_seg": 1.0}\n'),
        "log with a text for a loss": reported("met_str", "adaptation/metrics.jsonl", " line 2: loss_adv='x' must be", '{"step": 1}\n{"step": 2, "loss_adv": "x"}\n'),
        "log of lists": reported("met_list", "source/metrics.jsonl", " line 1: () must be", "[]\n"),
        "confusion of another size": reported("conf_size", "confusion.json", ": adapted must be 19 rows of 19", changed("adapted", value=[[1]])),
        "confusion with fractions": reported("conf_float", "confusion.json", ": adapted[0][0]=0.5 must be", changed("adapted", 0, 0, value=0.5)),
        "confusion with endless counts": reported("conf_huge", "confusion.json", ": adapted[0][0]=1", changed("adapted", 0, 0, value=10**30)),
        "distances without stages": reported("ccd_none", "ccd.json", ": stages is missing", "{}"),
        "distances of other classes": reported("ccd_other", "ccd.json", ": stages.b.both.ccd has other", '{"stages": {"a": {"both": {"ccd": {"x": 1}}}, "b": {"both": {"ccd": {"y": 1}}}}}'),
        "panel that is no picture": reported("panel", "panels/0_label.png", ": not a readable image", "hello"),
    },
}  # fmt: skip


def make(places):
    """Makes the files that the rows name."""
    outputs, reports = places["bad"] / "outputs", places["bad"] / "reports"
    for folder in ("frames", "own", "pipes", "taken/photo_label.png"):
        (outputs / folder).mkdir(parents=True)
    picture = raw_trees.picture(0, 24, 48)
    for path in ("frames/x.png", "frames/x_label.png", "frames/a_000000_000000_pred_labelIds.png"):
        Image.fromarray(picture).save(outputs / path)
    Image.fromarray(picture).save(outputs / "a_000000_000000_leftImg8bit.png")
    images.write_image(outputs / "own" / "photo_label.png", np.zeros((24, 48), np.uint8), prediction=True)
    np.save(outputs / "own" / "photo_probabilities.npy", np.zeros((24, 48), np.float32))
    os.mkfifo(outputs / "pipes" / "f.png")
    (outputs / "note.txt").write_text("mine")
    (outputs / "other.csv").write_text("a,b\n1,2\n")
    (outputs / "other.json").write_text('{"date": "2020-02-02"}\n')
    make_ablations(outputs)
    make_reports(reports)
    return {"outputs": outputs, "reports": reports}


def make_ablations(outputs):
    row = {"miou": 1.0, "iou": {"road": 1.0}}
    config = {"path": CONFIG.partition("=")[2], "overrides": {}, "split": ""}
    for name, text in {
        "garbage": "{}\nx",
        "empty": '{"config": {}}',
        "text": json.dumps({"config": config, "scores": {"source_only": {**row, "miou": "x"}}}),
        "row": json.dumps({"config": config, "scores": {"zzz": row}}),
    }.items():
        (outputs / name / "seed0").mkdir(parents=True)
        (outputs / name / "seed0" / "components.json").write_text(text)


def make_reports(reports):
    good = make_workdir(reports / "good")
    for name, (file, change) in DAMAGED.items():
        path = shutil.copytree(good, reports / name) / file
        if callable(change):
            change = json.dumps(change(json.loads(path.read_text())))
        path.write_bytes(change if isinstance(change, bytes) else change.encode())
