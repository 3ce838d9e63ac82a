"""Where hidden states are read, against transformers; a file with several places is made here."""

from __future__ import annotations

import json

import helpers
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: places in Python are not compared")
pytest.importorskip("transformers", reason="transformers is not installed: places in Python are not compared")

from numalign import Checkpoint, NumberModel  # noqa: E402
from numalign.checkpoint import file_digest  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

TAPS = ["0:mean", "2:last", "-1:numbers", "2:mean"]


@pytest.fixture(scope="module", params=["demo", "llama"])
def tapped(request, binary, runs, families):
    """A checkpoint that reads four places, with random weights."""
    family = request.param
    config = {"stage": "mixed", "model_name": families(family)}
    read = Checkpoint.read(helpers.train(binary, runs, f"untapped-{family}", config))
    width = len(TAPS) * read.hidden_size
    weight = np.random.default_rng(3).normal(0, width**-0.5, (1, width)).astype(np.float32)
    tensors = {**read.tensors, "output_projection.weight": weight}
    metadata = {**read.metadata, "taps": json.dumps(TAPS)}
    metadata["file_digest"] = file_digest(metadata, tensors)
    file = runs / "chk" / f"tapped-{family}.safetensors"
    save_file(tensors, file, metadata)
    return file


def test_places_are_those_of_transformers(tapped):
    model = NumberModel.from_checkpoint(tapped)
    assert model.checkpoint.places == [(0, "mean"), (2, "last"), (None, "numbers"), (2, "mean")]
    text, tokens = "$$12.5&& and $$81&&: which?", model.frozen.token_ids
    rows = [model.embed([12.5]), model.frozen.embed_tokens(tokens(" and ")), model.embed([81.0])]
    rows.append(model.frozen.embed_tokens(tokens(": which?")))
    numbers = [0, 1 + len(tokens(" and "))]
    with torch.no_grad():
        states = model.frozen.backbone(inputs_embeds=torch.cat(rows)[None], output_hidden_states=True).hidden_states
        pooled = [states[0][0].mean(0), states[2][0, -1], states[-1][0, numbers].mean(0), states[2][0].mean(0)]
    expected = torch.cat(pooled).numpy()
    assert np.allclose(model.hidden([text])[0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert model.predict([text]) == pytest.approx(model.read_out(expected[None]), rel=1e-5)


def test_later_blocks_do_not_run(tapped):
    model = NumberModel.from_checkpoint(tapped)
    ran = []
    for index, block in enumerate(model.frozen._blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.frozen.hidden(model.embed([1.0])[None], [0, 1], {})
    assert ran == [0]
    ran.clear()
    model.frozen.hidden(model.embed([1.0])[None], [0], {})
    assert ran == []
