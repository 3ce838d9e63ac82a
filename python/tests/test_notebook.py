"""The example notebook runs from its first cell to its last."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import helpers
import pytest

pytest.importorskip("torch", reason="torch is not installed: the notebook is not run")
for name in ("transformers", "pandas", "matplotlib", "nbconvert", "ipykernel"):
    pytest.importorskip(name, reason=f"{name} is not installed: the notebook is not run")


def test_the_notebook_trains_predicts_and_plots(binary, tmp_path):
    notebook = helpers.REPOSITORY / "examples" / "quickstart.ipynb"
    path = os.pathsep.join([str(helpers.REPOSITORY / "python"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(notebook)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYNUMALIGN_BINARY": binary},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "quickstart.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("text", [])) for output in outputs if output.get("name") == "stdout")
    assert "% of the range" in printed and "which is the minimum?" in printed
    assert any("image/png" in output.get("data", {}) for output in outputs)
