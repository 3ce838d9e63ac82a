"""What the tests share: the binary, a folder for runs, and model folders, each made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import helpers  # noqa: E402


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = helpers.find_binary()
    if found is None:
        pytest.skip("there is no numalign binary: build it, or name it in PYNUMALIGN_BINARY")
    return str(Path(found).resolve())


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory):
    """From a family's name to its folder; ``demo`` stays itself."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> str:
        if family == "demo":
            return family
        path = root / family
        if not path.exists():
            helpers.write_family(path, family)
        return str(path)

    return folder
