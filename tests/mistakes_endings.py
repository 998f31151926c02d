"""Mistakes in the flags of config files, processes and demo, for test_bad_inputs.py; see there."""

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"
TRAIN = ("-m", "fada_jax.train", "--config.data_dir={data}", "--workdir={new}/w")
TOGETHER = (*TRAIN, CONFIG, "--num_processes=2", "--process_id=1")
DEMO = ("-m", "fada_jax", "demo")
MINIATURE = ("scripts/make_miniature.py", "--datasets=gta5", "--source_images=1", "--workers=1")

ROWS = {
    "config files and keys": {
        "key below a value": (
            (*TRAIN, CONFIG, "--config.model.widths.x=5"),
            1,
            "--config.model.widths.x: config.model.widths is (16, 32, 48, 64), which has no keys of its own",
        ),
        "key below a number": ((*TRAIN, CONFIG, "--config.seed.x=5"), 1, "config.seed is 0, which has no keys"),
        "key without a name": ((*TRAIN, CONFIG, "--config..x=5"), 1, "--config..x: no key"),
        "key of nothing": ((*TRAIN, CONFIG, "--config.=5"), 1, "--config.: no key"),
        "unknown section": ((*TRAIN, CONFIG, "--config.nope.x=5"), 2, "'nope'"),
        "value for a section": ((*TRAIN, CONFIG, "--config.model=5"), 2, "--config.model=5"),
        "--config without a value": ((*TRAIN, "--config"), 1, "--config is empty"),
        "override with a blank, of a key that is not there": ((*TRAIN, CONFIG, "--config.sead", "1"), 2, '"seed"'),
        "config file that returns nothing": (
            (*TRAIN, "--config={bad}/none.py"),
            1,
            "{bad}/none.py: its get_config() returned NoneType",
        ),
        "config file that returns a dict": (
            (*TRAIN, "--config={bad}/dict.py"),
            1,
            "{bad}/dict.py: its get_config() returned dict",
        ),
        "config file that fails": (
            (*TRAIN, "--config={bad}/zero.py"),
            1,
            "{bad}/zero.py cannot be run: ZeroDivisionError",
        ),
        "config file that ends the program": (
            (*TRAIN, "--config={bad}/exit.py"),
            1,
            "{bad}/exit.py cannot be run: SystemExit",
        ),
        "config file without get_config": ((*TRAIN, "--config={bad}/empty.py"), 1, "{bad}/empty.py cannot be run"),
        "config file that imports what is not there": ((*TRAIN, "--config={bad}/import.py"), 2, "no_such_module"),
        "flag that is no text in UTF-8": ((*TRAIN, CONFIG, "--config.wandb=\udcff"), 1, "no text in UTF-8"),
    },
    "several processes": {
        "coordinator that is no address": (
            (*TOGETHER, "--coordinator=nonsense"),
            1,
            "--coordinator=nonsense: must be HOST:PORT of process 0",
        ),
        "coordinator with too high a port": (
            (*TOGETHER, "--coordinator=localhost:99999"),
            1,
            "--coordinator=localhost:99999: must be HOST:PORT",
        ),
        "coordinator with port 0": ((*TOGETHER, "--coordinator=localhost:0"), 1, "from 1 to 65535"),
        "coordinator without a port": ((*TOGETHER, "--coordinator=localhost:"), 1, "must be HOST:PORT"),
        "coordinator without a host": ((*TOGETHER, "--coordinator=:1234"), 1, "must be HOST:PORT"),
        "coordinator with a port in words": ((*TOGETHER, "--coordinator=localhost:http"), 1, "must be HOST:PORT"),
        "no time to join": ((*TRAIN, CONFIG, "--join_timeout=0"), 2, "join_timeout"),
    },
    "demo and make_miniature": {
        "demo of a folder without --out": ((*DEMO, "{new}/mydemo"), 2, "unexpected argument"),
        "demo without a folder": ((*DEMO, "--out"), 2, "--out: expected one argument"),
        "demo in a folder without a name": ((*DEMO, "--out="), 2, "name a folder to make"),
        "demo in the root of the file system": ((*DEMO, "--out", "/"), 2, "name a folder to make"),
        "demo with a seed in words": ((*DEMO, "--out={new}/d", "--seed=one"), 2, "'one' must be a whole number"),
        "demo with a flag that is not there": ((*DEMO, "--ouut={new}/d"), 2, "unexpected argument '--ouut="),
        "miniature data beside somebody's folder": (
            (*MINIATURE, "--out={bad}/mine/raw"),
            1,
            "{bad}/mine/.raw.partial is in the way and was not made by",
        ),
        "miniature data in the root of the file system": ((*MINIATURE, "--out=/"), 1, "the root of the file system"),
    },
}


def make(places):
    """Files that these rows name; returns their places."""
    bad = places["bad"]
    for name, text in {
        "none": "def get_config(): pass",
        "dict": "def get_config(): return {}",
        "zero": "def get_config(): 1 / 0",
        "exit": "raise SystemExit",
        "empty": "x = 1",
        "import": "import no_such_module",
    }.items():
        (bad / f"{name}.py").write_text(text + "\n")
    (bad / "mine" / ".raw.partial").mkdir(parents=True)
    (bad / "mine" / ".raw.partial" / "thesis.txt").write_text("years of work")
    return {}
