"""Mistakes in configs and workdirs, as rows of tests/test_bad_inputs.py."""

import json

from ml_collections import ConfigDict

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"
SIZES = ("--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)")
PLAIN = ("-m", "fada_jax.train", "--config.data_dir={data}", "--workdir={new}/w", CONFIG)
SOURCE = (*PLAIN, *SIZES)
ADAPTATION = (*PLAIN[:-1], f"{CONFIG},stage=adaptation", *SIZES)
PREDICT = ("-m", "fada_jax.predict", "--out={new}/out", "{photo}")

ROWS = {
    "values that nothing can be built with": {
        "infinite brightness": ((*SOURCE, "--config.source.brightness=inf"), 1, "source.brightness=inf must be a fin"),
        "steps to trace that are none": ((*SOURCE, "--profile=first"), 1, "--profile=first: must be START:STOP, for insta"),
        "a trace of what compiles": ((*SOURCE, "--profile=0:5"), 1, "--profile=0:5: this run goes from step 0 to 1000"),
        "infinite temperature": (
            (*ADAPTATION, "--config.knowledge.temperature=inf"), 1, "knowledge.temperature=inf must be a finite number",
        ),
        "learning rate that is no number": (
            (*SOURCE, "--config.generator_optimizer.learning_rate=nan"), 1, "generator_optimizer.learning_rate=nan must",
        ),
        "fractions of channels": (
            (*SOURCE, "--config.model.widths=(16.5,32.0,48.0,64.0)"), 1, "config.model.widths=(16.5, 32.0, 48.0, 64.0)",
        ),
        "fractions of pixels": ((*PLAIN, "--config.source.size=(48.5,32)"), 1, "config.source.size=(48.5, 32) must be"),
        "fractions of a dilation": ((*SOURCE, "--config.model.aspp_rates=(1.5,2)"), 1, "config.model.aspp_rates=(1.5, 2"),
        "fractions of blocks": (
            (*SOURCE, "--config.model.stage_sizes=(1.5,1,1,1)"), 1, "config.model.stage_sizes=(1.5, 1, 1, 1) must be",
        ),
        "more steps than can be counted": (
            (*SOURCE, "--config.total_steps=100000000000000000000"), 1, "total_steps=100000000000000000000 must be at",
        ),
        "a batch larger than can be counted": (
            (*SOURCE, "--config.batch_size=99999999999999999999999"), 1, "batch_size=99999999999999999999999 must be",
        ),
        "a crop larger than any image": ((*SOURCE, "--config.source.crop=(60000,60000)"), 1, "8 to 32768 pixels"),
        "scales that leave no pixels": (
            (*PLAIN, "--config.eval.size=(8,8)", "--config.multi_scale=(0.1,)"), 1, "config.multi_scale=(0.1,): an image",
        ),
        "channels that group norm cannot share": (
            (*SOURCE, "--config.model.widths=(16,32,44,64)"), 1, "no network can be built so: Number of groups",
        ),
        "logs for a service that is not installed": ((*SOURCE, "--config.wandb=mine"), 1, "config.wandb='mine' needs"),
    },
    "where a stage starts from": {
        "a weight file": ((*SOURCE, "--config.init_from={bad}/weights.pth"), 1, "convert_weights import makes a workdir"),
        "a store that nothing serves": ((*SOURCE, "--config.init_from=hdfs://host/w"), 1, "hdfs:// is not supported, only"),
        "a bucket that a shell has made a folder of": (
            (*SOURCE, "--config.data_dir=gs:/bucket/data"), 1, "config.data_dir=gs:/bucket/data: write gs://BUCKET/NAME",
        ),
        "a cache in a bucket": ((*SOURCE, "--cache_dir=gs://bucket/cache"), 1, "--cache_dir=gs://bucket/cache: a local f"),
        "a recipe": ((*SOURCE, "--config.init_from={recipe}"), 1, "it is a recipe's: name one of its stages, {recipe}/so"),
        "a workdir that holds another config and no checkpoint yet": (
            (*SOURCE[:-4], "--workdir={begun}", CONFIG, *SIZES, "--config.seed=5"), 1, "seed: 0 there, 5 now",
        ),
        "a workdir with logs of somebody else": (
            (*SOURCE[:-4], "--workdir={foreign}", CONFIG, *SIZES), 1, "metrics.jsonl is there already and no stage made",
        ),
        "a manifest that was edited": (
            (*SOURCE[:-4], "--workdir={edited}", CONFIG, *SIZES), 1, "manifest.json: parents.init_from.digest=",
        ),
    },
    "checkpoints edited by hand": {
        "step that has no digits of ours": ((*PREDICT, "--workdir={good}", "--checkpoint=²"), 1, "--checkpoint=² must be last"),
        "folder under another name": ((*PREDICT, "--workdir={renamed}"), 1, "is of step 6, not of 1000"),
        "class set of five": ((*PREDICT, "--workdir={five}"), 1, "its model has 19 classes, its class set 'cityscapes19' 5"),
        "unknown format": ((*PREDICT, "--workdir={format}"), 1, "format=99 is unknown to this version, which reads 1"),
        "unknown field": ((*PREDICT, "--workdir={field}"), 1, "model.evil is unknown"),
        "no config": ((*PREDICT, "--workdir={no_config}"), 1, "metadata: config is missing"),
        "no model": ((*PREDICT, "--workdir={no_model}"), 1, "metadata: model is missing"),
        "no size to test at": ((*PREDICT, "--workdir={no_eval}"), 1, "metadata: config: eval is missing"),
        "size of text": ((*PREDICT, "--workdir={text_size}"), 1, "config: eval.size='big' must be (width, height)"),
        "standard deviation of 0": ((*PREDICT, "--workdir={zero_std}"), 1, "preprocessing.std=(0, 0.224, 0.225) must"),
        "means of two channels": ((*PREDICT, "--workdir={two_means}"), 1, "preprocessing.mean=(0.4, 0.4) must be 3 num"),
        "widths of text": ((*PREDICT, "--workdir={text_widths}"), 1, "model.widths='wide' must be whole numbers"),
        "unknown class set": ((*PREDICT, "--workdir={named_set}"), 1, "class_set: unknown class set 'nope'"),
        "number for a class set": ((*PREDICT, "--workdir={number_set}"), 1, "metadata: class_set=5 must be"),
        "nothing at all": ((*PREDICT, "--workdir={null}"), 1, "what it says about its model must be an object, not None"),
        "another network than its arrays": ((*PREDICT, "--workdir={wider}"), 1, "the model that it describes needs"),
        "unknown backbone": ((*PREDICT, "--workdir={backbone}"), 1, "model.backbone='resnet9' must be one of"),
        "a sum of a file elsewhere": ((*PREDICT, "--workdir={escaping}"), 1, "SHA256SUMS has a line that is no sum"),
        "class map without an end": ((*SOURCE, "--config.class_set={bad}/deep.json"), 1, "deep.json is not JSON (recurs"),
        "class map of a number": ((*SOURCE, "--config.class_set={bad}/number.json"), 1, "class map {bad}/number.json: "),
    },
}  # fmt: skip


def _edited(meta):
    """What a hand made of ``meta``, by place."""

    def change(**values):
        return {**json.loads(meta), **values}

    def within(key, **values):
        return change(**{key: {**json.loads(meta)[key], **values}})

    def without(key):
        return {name: value for name, value in json.loads(meta).items() if name != key}

    classes, config = json.loads(meta)["class_set"], json.loads(meta)["config"]
    five = {**classes, **{key: classes[key][:5] for key in ("names", "colors")}, "subset_13": []}
    no_eval = {key: value for key, value in config.items() if key != "eval"}
    return {
        "renamed": json.loads(meta),
        "five": change(class_set=five),
        "format": change(format=99),
        "field": within("model", evil=1),
        "no_config": without("config"),
        "no_model": without("model"),
        "no_eval": change(config=no_eval),
        "text_size": within("config", eval={**config["eval"], "size": "big"}),
        "zero_std": within("preprocessing", std=[0, 0.224, 0.225]),
        "two_means": within("preprocessing", mean=[0.4, 0.4]),
        "text_widths": within("model", widths="wide"),
        "named_set": change(class_set="nope"),
        "number_set": change(class_set=5),
        "null": None,
        "wider": within("model", widths=[16, 32, 48, 80]),
        "backbone": within("model", backbone="resnet9"),
        "escaping": json.loads(meta),
    }


def make(places):
    """Workdirs that a hand has been in."""
    import shutil

    from test_bad_inputs import tiny_config

    from fada_jax import config as schema
    from fada_jax.training import checksums

    bad, good = places["bad"], places["good"] / "checkpoints" / "6"
    (bad / "weights.pth").write_bytes(b"x")
    (bad / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    (bad / "number.json").write_text("7")
    found = {name: bad / name for name in ("begun", "foreign", "edited")}
    for folder in found.values():
        folder.mkdir()
    manifest = {
        "format": 1, "made_by": "fada-jax", "config": schema.read(ConfigDict(tiny_config())).plain(), "parents": {},
    }  # fmt: skip
    (found["begun"] / "manifest.json").write_text(json.dumps(manifest))
    parents = {"init_from": {"step": 3, "digest": "0" * 63}}
    (found["edited"] / "manifest.json").write_text(json.dumps({**manifest, "parents": parents}))
    (found["foreign"] / "metrics.jsonl").write_text("mine\n")
    for name, values in _edited((good / "meta" / "metadata").read_text()).items():
        found[name] = bad / name
        checkpoint = bad / name / "checkpoints" / ("1000" if name == "renamed" else "6")
        shutil.copytree(good, checkpoint)
        (checkpoint / "meta" / "metadata").write_text(json.dumps(values))
        (checkpoint / "SHA256SUMS").unlink()
        checksums.write(checkpoint)
    with (found["escaping"] / "checkpoints" / "6" / "SHA256SUMS").open("a") as file:
        file.write("0" * 64 + "  meta/../../../../../../../../dev/zero\n")
    return found
