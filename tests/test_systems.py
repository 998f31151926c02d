"""Systems beside FADA against PyTorch: losses, gradients of every network, and three iterations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import parity  # noqa: E402
import scipy.optimize  # noqa: E402
import systems_cells  # noqa: E402
import systems_networks as networks  # noqa: E402
import systems_parity  # noqa: E402
import torch_systems_cells as cells  # noqa: E402

torch.set_num_threads(1)

# As in test_parity.
ROUNDING = 1e-6
CASES = systems_cells.cases()
QUICK = (
    "adaptsegnet_multi released",
    "clan-focal equal",
    "crosscity-late equal",
    "adaptpatch-late equal",
)


def quick_first() -> list:
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in CASES}
    return [pytest.param(case, id=name.replace(" ", "-"), marks=marks[name]) for name, case in CASES.items()]


def check_complete(rows: list[parity.Row], case: systems_parity.Case) -> None:
    """Every loss and every network is there."""
    names = " ".join(row.name for row in rows)
    for net in networks.parts(*case.networks()):
        for what in ("gradient of {} without labels", "gradient of {} with labels", "update of {}"):
            assert what.format(net) in names
    for loss in case.losses:
        assert f"{loss}, iteration 3" in names


@pytest.mark.parametrize("case", quick_first())
def test_a_system_in_float32(case):
    rows = systems_cells.measure(case)
    check_complete(rows, case)
    limits = [
        # A loss is one rounded number: PyTorch's may be exact by luck.
        min(row.limit, np.inf if "loss" in row.name else max(3 * row.torch32, ROUNDING))
        for row in rows
    ]
    failed = [row for row, limit in zip(rows, limits, strict=True) if not row.ours <= limit]
    assert not failed, "\n" + parity.markdown(failed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "-"))
def test_a_system_in_float64(name):
    command = [sys.executable, str(Path(__file__).with_name("systems_float64.py")), name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [parity.Row(**row) for row in json.loads(output.splitlines()[-1])]
    check_complete(rows, CASES[name])
    # Far beyond the limits: what is left is rounding in float64, which Adam enlarges where a gradient is almost 0.
    failed = [row for row in rows if not row.ours < (1e-10 if "update" in row.name else 1e-12)]
    assert not failed, "\n" + parity.markdown(failed)


def test_the_references_nearest_distribution_solves_the_primal_problem():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    sizes = cells.ClassSizes(np.array([0.1, 0.1, 0.1]), np.array([0.5, 0.2, 0.1]), np.array([0.6, 0.3, 0.25]))
    q, present = cells.nearest(p, sizes, slack=100.0)
    assert present.all() and not np.allclose(p.mean(0), q.mean(0), atol=0.02)
    constraints = [
        {"type": "eq", "fun": lambda x: x.reshape(p.shape).sum(1) - 1},
        {"type": "ineq", "fun": lambda x: x.reshape(p.shape).mean(0) - sizes.mean},
        {"type": "ineq", "fun": lambda x: sizes.high - x.reshape(p.shape).mean(0)},
    ]
    exact = scipy.optimize.minimize(
        lambda x: (x * np.log(x / p.ravel())).sum() / len(p),
        p.ravel(),
        constraints=constraints,
        bounds=[(1e-9, 1)] * p.size,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(q, exact.x.reshape(p.shape), atol=1e-6)


def test_an_absent_class_gets_nothing():
    p = np.array([[0.9, 0.09, 0.01], [0.6, 0.395, 0.005]])
    sizes = cells.ClassSizes(np.array([0.1, 0.1, 0.2]), np.array([0.5, 0.2, 0.3]), np.array([0.9, 0.5, 0.4]))
    q, present = cells.nearest(p, sizes, slack=100.0)
    np.testing.assert_array_equal(present, [True, True, False])
    np.testing.assert_array_equal(q[:, 2], 0)
    np.testing.assert_allclose(q.sum(1), 1)
    assert q[:, 1].mean() > 0.2 - 1e-6
