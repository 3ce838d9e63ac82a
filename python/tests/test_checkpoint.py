"""The checkpoint file: what docs/CHECKPOINT.md says of it, and what a damaged one is told."""

from __future__ import annotations

import json

import helpers
import numpy as np
import pytest
from numalign import Checkpoint, NumalignError

PAGE = helpers.REPOSITORY / "docs" / "CHECKPOINT.md"

#: Between them they have every kind of tensor and metadata of a final checkpoint.
RUNS = {
    "documented-nn": {"stage": "nn", "solver": "alternate", "solve_samples": 64, "target": "signlog", "min_val": 1},
    "documented-text": {"stage": "text", "solver": "exact", "num_batches": 20},
    "documented-mixed": {
        "stage": "mixed", "eval_every": 1, "eval_samples": 8, "train_layer_norms": True, "value_encoding": "fourier",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(binary, runs):
    def train(name):
        file = runs / "chk" / f"{name}.safetensors"
        return file if file.exists() else helpers.train(binary, runs, name, RUNS[name])

    return train


@pytest.mark.parametrize("name", RUNS)
def test_every_key_and_tensor_stands_in_the_page(name, checkpoint):
    read = Checkpoint.read(checkpoint(name))
    page = PAGE.read_text()
    keys = set(read.metadata)
    for key in ("encoder", "schedule", "best", "solve"):
        fields = json.loads(read.metadata.get(key, "{}"))
        keys |= set(fields) | set(fields.get("target", {}))
    for made in read.history:
        keys |= set(made)
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []
    for tensor in read.tensors:
        for prefix in ("best.", "optimizer.exp_avg.", "optimizer.exp_avg_sq."):
            if tensor.startswith(prefix):
                assert f"`{prefix}TENSOR`" in page
                tensor = tensor.removeprefix(prefix)
        known = "layer_norms.NAME" if tensor.startswith("layer_norms.") else tensor
        assert f"`{known}`" in page, tensor


def test_tensors_have_the_shapes_of_the_page(checkpoint):
    read = Checkpoint.read(checkpoint("documented-mixed"))
    d, w = read.hidden_size, read.inputs[0].width
    shapes = {name: values.shape for name, values in read.projectors().items()}
    assert shapes["input_projection.weight"] == (d, w) and shapes["output_projection.weight"] == (1, d)
    assert shapes["input_projection.bias"] == (d,) and shapes["output_projection.bias"] == (1,)
    assert read.layer_norms()["h.0.ln_1.weight"].shape == (d,) and read.places == [(None, "last")]
    assert read.stage == "mixed" and read.step == 10 and len(read.history) == 2
    best = [made["step"] for made in read.history].index(read.best["step"])
    same = np.array_equal(
        read.projectors(best=True)["output_projection.weight"], read.projectors()["output_projection.weight"]
    )
    assert same == (best == 1)


def test_what_is_no_whole_checkpoint_is_refused(checkpoint, tmp_path):
    good = checkpoint("documented-nn").read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1
    older = good.replace(b'"format_version":"1"', b'"format_version":"0"')
    foreign = (helpers.DEMO / "model.safetensors").read_bytes()
    for content, words in [
        (bytes(flipped), "is damaged: its content has digest"),
        (good[:-9], "not a whole safetensors file"),
        (b"", "not a whole safetensors file"),
        (older, "has format version 0"),
        (foreign, "is not a numalign checkpoint"),
    ]:
        file = tmp_path / "file.safetensors"
        file.write_bytes(content)
        with pytest.raises(NumalignError, match=words):
            Checkpoint.read(file)
    with pytest.raises(NumalignError, match="there is no file"):
        Checkpoint.read(tmp_path / "missing.safetensors")
