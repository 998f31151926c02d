"""The report of made-up runs in headless Chromium: complete, quiet, readable when narrow, and the slider slides."""

import json
import shutil
import tempfile

import numpy as np
import pytest
from commands import command

from fada_jax import files, images
from fada_jax.classes import get_class_set
from fada_jax.errors import UserError
from fada_jax.reporting import page as report
from fada_jax.reporting import paper
from fada_jax.reporting.rows import LABELS

ROWS = ("source_only", "control", "colour_matching", "adapted", "self_distilled", "self_distilled_multi_scale")
STAGES = ("source", "control", "adaptation", "self_distillation")


def make_workdir(root, task="gta5_to_cityscapes", seed=0, city=""):
    """What a recipe leaves, with random numbers."""
    rng = np.random.default_rng(seed)
    class_set = get_class_set(paper.CLASS_SETS[task])
    k = class_set.num_classes
    rows = []
    for name in ROWS:
        iou = dict(zip(class_set.names, rng.uniform(0, 90, k).tolist(), strict=True))
        iou[class_set.names[5]] = None
        row = {
            "name": name, "miou": float(np.mean([v for v in iou.values() if v is not None])), "iou": iou,
            "accuracy": 80.0, "num_images": 12, "class_set": class_set.name, "scored_at": "128x64",
            "dataset": "cityscapes", "split": "val",
        }  # fmt: skip
        row |= {"miou_13": 33.3} if class_set.subset_13 else {}
        rows.append(row | ({"mode": "image"} if name == "colour_matching" else {}))
    root.mkdir(parents=True)
    summary = {"config": f"configs/{task}.py:size=<b>", "seed": seed, "overrides": {"total_steps": 6}, "rows": rows}
    (root / "results.json").write_text(json.dumps(summary))
    confusions = {name: rng.integers(0, 1000, (k, k)).tolist() for name in ROWS}
    (root / "confusion.json").write_text(json.dumps(confusions))
    for stage in STAGES:
        (root / stage).mkdir()
        config = {"task": task, "stage": stage, "total_steps": 6, "batch_size": 8, "method": "fada"}
        (root / stage / "config.json").write_text(json.dumps(config | {"target": {"city": city}}))
        lines = [{"step": s, "loss_seg": 3.0 / s, "loss_adv": 1.0, "steps_per_second": 2.0} for s in (2, 4, 6)]
        lines.insert(1, {"step": 3, "skipped": "NaN"})
        if stage == "source":  # The others are of an earlier version.
            lines[-1]["time"] = {"at": 1e9, "starts": 2, "seconds": {"steps": 90.0, "compile": 20.0, "repeated": 10.0}}
        (root / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i in range(2):
        for column in ("image", "source", "adaptation", "label"):
            picture = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            images.write_image(root / "panels" / f"{i}_{column}.png", picture)
    return root


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    first, second = make_workdir(root / "seed0"), make_workdir(root / "seed1", seed=1)
    by_class = dict.fromkeys(get_class_set("cityscapes19").names, 1.5) | {"train": None}
    stages = {stage: {"both": {"mean": 1.5, "ccd": by_class}} for stage in ("source", "adaptation")}
    (first / "ccd.json").write_text(json.dumps({"stages": stages}))
    return first, second


def test_the_class_table_puts_a_run_beside_the_papers_rows(tmp_path):
    for task, city, count in (
        ("gta5_to_cityscapes", "", 22),
        ("synthia_to_cityscapes", "", 20),
        ("cityscapes_to_crosscity", "Rio", 5),
    ):
        run = report.read_run(make_workdir(tmp_path / task, task, city=city), "run")
        names, rows = report.class_table(run)
        assert tuple(names) == get_class_set(paper.CLASS_SETS[task]).names
        assert [row["ours"] for row in rows] == [True] * len(ROWS) + [False] * count
        assert all(len(row["iou"]) == len(names) for row in rows)
        assert rows[0]["iou"][5] is None and rows[0]["label"] == LABELS["source_only"]
        found = report.notes(rows)
        assert any(labels.startswith("FADA (") and "self-distillation" in note for note, labels in found.items())
        about = ", ".join(found.values()).split(", ")
        assert all((row["label"] in about) == bool(row["note"]) for row in rows)
    assert rows[-1]["label"] == "FADA (Rio)" and rows[-1]["iou"][0] == 80.6 and rows[-1]["miou"] == 54.7


def test_a_stage_says_where_its_time_went(workdirs):
    shown = {stage["name"]: stage["time"] for stage in report.section(report.read_run(workdirs[0], "run"))["stages"]}
    assert shown["source"] == "75.0% of 2.0 minutes in steps, 2 starts; compile 16.7%, repeated 8.3%"
    assert shown["control"] == ""


def test_wrong_workdirs_end_with_one_line(workdirs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdirs[0], other)
    for name, text, expected in (
        ("results.json", "{", r"other/results\.json is not JSON"),
        ("results.json", '{"rows": [1]}', r"other/results\.json: config is missing"),
        ("source/metrics.jsonl", "{\n", r"metrics\.jsonl line 1 is not JSON"),
        ("panels/0_label.png", "", r"0_label\.png: not a readable image"),
    ):
        good = (other / name).read_bytes()
        (other / name).write_text(text)
        with pytest.raises(UserError, match=expected):
            report.page([other])
        (other / name).write_bytes(good)
    with pytest.raises(UserError, match=f"name its seeds {workdirs[0]}, {workdirs[1]}"):
        report.page([workdirs[0].parent])
    output = tmp_path / "r.html"
    error = command("scripts/report.py", f"--workdir={tmp_path}/nowhere", f"--output={output}", expect=1)
    assert "nowhere/results.json is not there: finish the recipe" in error
    assert not output.exists() and not list(tmp_path.glob("*.partial"))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not on the PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        chromium = webdriver.Chrome(options, Service(driver))
        yield chromium
        chromium.quit()


@pytest.mark.parametrize("count", [1, 2])
def test_the_page_in_a_browser(browser, workdirs, tmp_path, count):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    output = tmp_path / "report.html"
    files.write_text(output, report.page(workdirs[:count]))
    browser.get_log("performance")
    browser.get(output.as_uri())
    pictures = browser.find_elements(By.TAG_NAME, "img")
    # Panels, bars, curves, three confusion matrices; the first run has a CCD.
    assert len(pictures) == count * (2 * 4 + 1 + len(STAGES) + 3) + 1
    shown = "return [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.width > 0)"
    assert browser.execute_script(shown)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in requested if not url.startswith("data:")} == {output.as_uri()}

    text = browser.find_element(By.TAG_NAME, "body").text
    assert all(LABELS[name] in text for name in ROWS) and "AdaptSegNet (ResNet-101)" in text
    assert "size=<b>" in text and "--config.total_steps=6" in text
    assert ("All runs, mIoU in %" in text) == (count == 2)

    for width in (1280, 400):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        slider, compare = (browser.find_element(By.CLASS_NAME, c) for c in ("slider", "compare"))
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", compare)

        before = compare.find_element(By.CLASS_NAME, "before")
        edges = [before.value_of_css_property("clip-path")]
        span = slider.size["width"]
        ActionChains(browser).move_to_element_with_offset(slider, int(0.3 * span), 0).click().perform()
        assert 75 <= float(slider.get_property("value")) <= 85
        edges.append(before.value_of_css_property("clip-path"))
        ActionChains(browser).click_and_hold().move_by_offset(-int(0.6 * span), 0).release().perform()
        assert 15 <= float(slider.get_property("value")) <= 25
        edges.append(before.value_of_css_property("clip-path"))
        assert len(set(edges)) == 3 and all(edge.startswith("inset(") for edge in edges)
