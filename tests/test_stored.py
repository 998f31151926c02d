"""What is stored is read against its schema: formats of today and of before, and what a hand or a disk made of them."""

import json
import os
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from fuzz_formats import JSON, places, put
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bad_inputs import tiny_config, write_checkpoints

from fada_jax import classes, documents, files, stored
from fada_jax import config as schema
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion
from fada_jax.stages import beginning
from fada_jax.training import checkpoints, checksums

BEFORE = Path(__file__).with_name("stored_before")


@pytest.mark.parametrize("path", sorted(BEFORE.glob("checkpoint_*.json")), ids=lambda path: path.stem)
def test_checkpoints_of_earlier_versions_are_understood(path):
    meta = stored.meta(documents.read(path), path)
    assert meta.class_set == classes.get_class_set("cityscapes19") and meta.config["eval"]["size"] == [48, 24]
    config = schema.stored(meta.config, meta.model.num_classes)
    assert (config.stage, config.method) == ("source", "fada") and config.student_from in ("init_from", "source")
    # Written again, it is of today.
    assert stored.meta(json.loads(json.dumps(meta.plain())), path) == meta


DOCUMENT = json.loads((BEFORE / "checkpoint_dbe317b.json").read_text())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(places(DOCUMENT))), JSON)
def test_one_changed_field_is_understood_or_refused_in_one_line(at, new):
    try:
        meta = stored.meta(put(DOCUMENT, at, new, remove=new is None), "file")
        schema.stored(meta.config, meta.model.num_classes)
        checkpoints.generator_shapes(meta.model, "file: model")
    except UserError as error:
        assert "\n" not in str(error) and str(error)


def test_a_checkpoint_that_goes_while_it_is_read_gives_way_to_the_next(tmp_path, monkeypatch):
    config = tiny_config()
    write_checkpoints(tmp_path, config, 3)
    begun, restore = threading.Event(), checkpoints._restore

    def removed_meanwhile(workdir, step, *rest):
        if step == 3 and not begun.is_set():
            begun.set()
            write_checkpoints(tmp_path, config, 6)
            shutil.rmtree(checkpoints.directory(tmp_path) / "3")
        return restore(workdir, step, *rest)

    monkeypatch.setattr(checkpoints, "_restore", removed_meanwhile)
    assert checkpoints.load_model(tmp_path).step == 6 and begun.is_set()
    with pytest.raises(UserError, match=r"checkpoint '3' is not in .*: last, best or one of \[6\]"):
        checkpoints.load_model(tmp_path, "3")


def test_a_run_whose_every_checkpoint_is_damaged_is_not_begun_anew(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3, 6)
    for step in (3, 6):
        (checkpoints.directory(tmp_path) / str(step) / "model" / "manifest.ocdbt").write_bytes(b"")
    said = []
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(model/manifest.ocdbt"):
        checkpoints.last_good(tmp_path, said.append)
    assert checkpoints.available_steps(tmp_path) == [3, 6] and not said


def test_a_stray_folder_is_no_checkpoint(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3)
    for name in ("²", "007", "-5", "3.damaged", "99999999999999999999"):
        (checkpoints.directory(tmp_path) / name).mkdir()
    (checkpoints.directory(tmp_path) / "9").write_text("a file")
    assert checkpoints.available_steps(tmp_path) == [3]


def test_an_earlier_damaged_copy_stays(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3, 6)
    root = checkpoints.directory(tmp_path)
    (root / "6.damaged").mkdir()
    (root / "6.damaged" / "mine").write_text("x")
    (root / "6" / "model" / "manifest.ocdbt").write_bytes(b"")
    assert checkpoints.last_good(tmp_path, lambda line: None) == 3
    assert (root / "6.damaged" / "mine").exists() and (root / "6.damaged1" / "model").is_dir()


def test_sums_that_were_cut_hide_nothing(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3)
    path = checkpoints.directory(tmp_path) / "3"
    lines = (path / "SHA256SUMS").read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        (path / "SHA256SUMS").write_text("".join(lines[:kept]))
        assert checksums.damage(path)


def test_a_workdir_belongs_to_the_config_that_began_in_it(tmp_path):
    config = schema.read(tiny_config(seed=1))
    begun = beginning.check(config, tmp_path / "w", data_sets=False)
    assert begun.manifest is None and not (tmp_path / "w").exists()
    beginning.own(config, tmp_path / "w", begun, {})
    assert beginning.check(config, tmp_path / "w", data_sets=False).manifest.config == config.plain()
    with pytest.raises(UserError, match="seed: 1 there, 2 now"):
        beginning.check(schema.read(tiny_config(seed=2)), tmp_path / "w", data_sets=False)
    beginning.check(schema.read(tiny_config(seed=1, log_every=7)), tmp_path / "w", data_sets=False)


def test_a_workdir_of_an_earlier_version_without_a_checkpoint_goes_on(tmp_path):
    config = schema.read(tiny_config())
    (tmp_path / "config.json").write_text(json.dumps(config.plain()))
    (tmp_path / "metrics.jsonl").write_text("")
    assert beginning.check(config, tmp_path, data_sets=False).manifest is None
    (tmp_path / "config.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(UserError, match=r"config\.json is there already and no stage made it"):
        beginning.check(config, tmp_path, data_sets=False)


def test_what_a_checkpoint_says_is_what_its_arrays_are(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3)
    state = checkpoints.generator_shapes(checkpoints.read_meta(tmp_path, 3).model, "model")
    halved = {"params": state.params, "batch_stats": state.collections.get("batch_stats", {})}
    halved["params"] = {**halved["params"], "classifier": {}}
    with pytest.raises(UserError, match=r"classifier.* is float32\[.*\], the model that it describes needs nothing"):
        checkpoints._restore(tmp_path, 3, "model", halved)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 10_000, "recursion limit"), ('{"a": NaN}', "is not JSON"), ('{"a": 1', "is not JSON"),
        ("", "is not JSON"),
        (b"\xff\xfe", "is not JSON"), ('{"a": Infinity}', "is not JSON"),
    ],
)  # fmt: skip
def test_documents_are_json_within_bounds(text, problem):
    with pytest.raises(UserError, match=f"^file .*{problem}|^file is not JSON .*{problem}"):
        documents.parse(text, "file")


def test_special_files_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        for path, kind in (
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "socket", "a socket"),
            ("/dev/zero", "a dev"),
        ):
            with pytest.raises(UserError, match=kind):
                files.read_bytes(path)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(UserError, match="has 5 bytes, more than the 4"):
        files.read_bytes(tmp_path / "large", limit=4)


def test_metrics_of_another_kind_are_dropped_on_resume(tmp_path):
    from test_run_log import VALUES, _config

    from fada_jax.stages import logs
    from fada_jax.training import loop

    lines = ['{"step": 1}', "[1]", '{"step": "2"}', "7", "\x00\x01", '{"step": 99}', '{"step": 2}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with logs.open_log(tmp_path, loop.Plan(2, 4, 2, 2), _config(), lambda line: None, images_per_step=8) as log:
        log.metrics(4, VALUES)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 4]


def test_ids_of_class_maps_have_one_meaning():
    two = {"classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [2]}]}
    class_set, encoding = classes.parse_class_map(two, "map")
    assert class_set.names == ("a", "b") and encoding.ids == {1: "a", 2: "b"}
    np.testing.assert_array_equal(classes.label_table("mine", class_set, encoding)[:4], [255, 0, 1, 255])
    for change, problem in (
        ({"ids": [300]}, "classes[1].ids[0]=300 must be at most 255"), ({"ids": [True]}, "must be of type int"),
        ({"ids": [1.0]}, "must be of type int"), ({"ids": []}, "classes[1].ids"), ({"name": "a"}, "two classes are"),
        ({"name": ""}, "classes[1].name"), ({"colour": 1}, "classes[1].colour is unknown"),
        ({"color": [1, 2]}, "color"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            classes.parse_class_map({"classes": [two["classes"][0], {**two["classes"][1], **change}]}, "map")
        assert problem in str(caught.value), str(caught.value)


def test_training_refuses_a_class_map_that_was_edited_after_the_conversion(tmp_path):
    class_map = {"name": "mine", "classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [2]}], "ignored_ids": [0]}
    raw_trees.folder(tmp_path / "raw", "train", 2, np.ones((20, 30), np.uint8))
    request = conversion.Conversion("folder", tmp_path / "raw", name="mine", class_map=class_map)
    conversion.convert(request, tmp_path / "data")
    path = tmp_path / "map.json"
    path.write_text(json.dumps(class_map))
    config = tiny_config(data_dir=str(tmp_path / "data"), class_set=str(path))
    config.source.dataset = "mine"
    assert beginning.check(schema.read(config), tmp_path / "w").images == {"source": 2}
    moved = [{"name": "a", "ids": [2]}, {"name": "b", "ids": [1]}]
    path.write_text(json.dumps({**class_map, "classes": moved}))
    with pytest.raises(UserError, match="was converted with another class map called 'mine'"):
        beginning.check(schema.read(config), tmp_path / "w")
    # A map of another name has the same classes in other data, for instance of the other domain.
    path.write_text(json.dumps({**class_map, "name": "other", "classes": moved}))
    beginning.check(schema.read(config), tmp_path / "w")
