"""The notebook runs from top to bottom, as plain Python: its cells, in a folder of their own."""

import json
import subprocess
import sys

import pytest
from commands import ROOT, environment


@pytest.mark.slow
def test_the_notebook_runs_and_adapts(tmp_path):
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**environment(), "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    scores = {line.split(": ")[0]: float(line.split(": ")[1]) for line in result.stdout.splitlines() if "mIoU" in line}
    assert scores["target mIoU, adapted"] > scores["target mIoU, source only"], scores
