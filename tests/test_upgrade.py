"""What earlier versions wrote stays readable: stage names, folders, configs without today's keys."""

import pytest
from test_bad_inputs import tiny_config, write_checkpoints

from fada_jax import config as schema
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.methods.stages import current_name
from fada_jax.stages import beginning, workdirs
from fada_jax.training import checkpoints, checksums


def test_the_old_name_of_a_stage_is_an_argument_still():
    new, old = (
        schema.read(gta5_to_cityscapes.get_config(f"stage={stage},size=miniature"))
        for stage in ("adaptation", "adversarial")
    )
    assert new == old and old.stage == "adaptation" and current_name("source") == "source"


def old_config(config):
    """A config as the version before wrote it down."""
    values = schema.read(config).plain()
    del values["options"]
    for name in ("source", "target", "eval"):
        del values[name]["jitter_first"]
    return {**values, "stage": "adversarial", "student_from": "adversarial"}


def test_a_config_of_an_earlier_version_is_read_with_the_values_of_then():
    config = gta5_to_cityscapes.get_config("stage=adaptation")
    config.student_from = "adaptation"
    config.source.jitter_first = config.target.jitter_first = config.eval.jitter_first = False
    assert schema.stored(old_config(config), 19) == schema.read(config)
    broken = old_config(config)
    del broken["seed"]
    with pytest.raises(UserError, match=r"config\.seed is missing"):
        schema.stored(broken, 19)
    with pytest.raises(UserError, match=r"config\.nope is no key"):
        schema.stored({**old_config(config), "nope": 1}, 19)


def test_a_workdir_of_the_old_stage_goes_on(tmp_path):
    config = tiny_config()
    config.update(stage="adaptation", lambda_adv=0.0)
    config.student_from = "adaptation"
    write_checkpoints(tmp_path / "w", config, 2)
    path = next((tmp_path / "w").rglob("meta/metadata"))
    renamed = path.read_text().replace('"adaptation"', '"adversarial"')
    assert renamed.count('"adversarial"') == 2
    path.write_text(renamed)
    # The sums are of the file as it was.
    (path.parents[1] / "SHA256SUMS").unlink()
    checksums.write(path.parents[1])
    begun = beginning.check(schema.read(config), tmp_path / "w", data_sets=False)
    assert begun.meta.config["stage"] == "adversarial"
    other = tiny_config()
    with pytest.raises(UserError, match="belongs to another config"):
        beginning.check(schema.read(other), tmp_path / "w", data_sets=False)


def test_a_recipes_folder_keeps_its_old_name(tmp_path):
    assert workdirs.stage_folder(tmp_path, "adaptation") == tmp_path / "adaptation"
    write_checkpoints(tmp_path / "source", tiny_config(), 1)
    write_checkpoints(tmp_path / "adversarial", tiny_config(), 2)
    assert workdirs.stage_folder(tmp_path, "adaptation") == tmp_path / "adversarial"
    assert workdirs.stage_workdir(tmp_path) == tmp_path / "adversarial"
    write_checkpoints(tmp_path / "adaptation", tiny_config(), 3)
    assert checkpoints.available_steps(workdirs.stage_workdir(tmp_path)) == [3]
