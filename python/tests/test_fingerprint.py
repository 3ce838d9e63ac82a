"""The base fingerprint in Python against the binary's, over every folder of testdata/."""

from __future__ import annotations

import re
import subprocess

import helpers
import pytest

pytest.importorskip("torch", reason="torch is not installed: fingerprints in Python are not compared")
pytest.importorskip("transformers", reason="transformers is not installed: fingerprints in Python are not compared")

from numalign.frozen import FrozenModel  # noqa: E402

FOLDERS = sorted(path.parent for path in (helpers.REPOSITORY / "testdata").glob("*/config.json"))
GGUF = [helpers.REPOSITORY / "testdata" / "gguf" / f"{name}.gguf" for name in ("quantised-llama", "qwen2-biased")]


@pytest.fixture(scope="module")
def refusal(binary, runs):
    """The fingerprint that the binary names when it refuses a model."""
    checkpoint = helpers.train(binary, runs, "refused", {"stage": "nn"})

    def ask(model):
        arguments = [binary, "hidden", "--checkpoint", checkpoint, "--model", model, "--value", "1"]
        said = subprocess.run(arguments, capture_output=True, text=True, timeout=60).stderr
        return re.search(r"that of `.*` is ([0-9a-f]{16})", said)[1]

    return ask


@pytest.mark.parametrize("model", FOLDERS, ids=lambda path: path.name)
def test_the_fingerprint_is_the_binarys(model, refusal):
    assert FrozenModel.load(str(model)).fingerprint().startswith(refusal(model))


@pytest.mark.parametrize("model", GGUF, ids=lambda path: path.name)
def test_a_gguf_file_has_the_fingerprint_of_its_numbers(model, refusal):
    pytest.importorskip("gguf", reason="gguf is not installed: GGUF files are not read in Python")
    assert FrozenModel.load(str(model)).fingerprint().startswith(refusal(model))
