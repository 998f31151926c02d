"""Fuzzing and soaking, shorter than the documentation's runs of ``fuzz.py`` and ``soak.py``."""

import fuzz
import numpy as np
import pytest
import soak

from fada_jax.training import checkpoints

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", ["images", "weights"])
def test_damaged_files_are_read_or_refused_in_one_line(what):
    assert fuzz.fuzz(what, seconds=60, seed=1)[0] > 100


@pytest.mark.timeout(1800)
def test_memory_files_and_threads_stay_flat(tmp_path):
    samples, left = soak.soak(tmp_path, steps=400)
    half = samples[len(samples) // 2 :]
    resident, files, threads = (np.polyfit(half[:, 0], half[:, i], 1)[0] * 1000 for i in (1, 2, 3))
    assert resident < 60 and abs(files) < 5 and abs(threads) < 5 and left == []
    # It scored and kept a best checkpoint on the way.
    assert checkpoints.resolve_step(tmp_path / "w", "best") in checkpoints.recorded_scores(tmp_path / "w")
