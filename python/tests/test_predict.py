"""Predictions in PyTorch against those of the binary, over stages, families, encodings, poolings and layers."""

from __future__ import annotations

import json
import shutil

import helpers
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: predictions in Python are not compared")
pytest.importorskip("transformers", reason="transformers is not installed: predictions in Python are not compared")

import numalign  # noqa: E402

#: Largest relative difference of a prediction.
BOUND = 1e-4

FOURIER = {"value_encoding": "fourier", "fourier_periods": 3}
SIGNLOG = {"value_encoding": "signlog", "min_val": 0.1, "max_val": 1e4}
CASES = {
    "nn": ("demo", {"stage": "nn", "numeric_positions": 3}),
    "nn-raw": ("demo", {"stage": "nn", "value_encoding": "raw", "pooling": "mean", "numeric_positions": 2}),
    "nn-signlog": ("demo", {"stage": "nn", **SIGNLOG}),
    "nn-signlog-target": ("demo", {"stage": "nn", "target": "signlog", "min_val": 1}),
    "nn-fourier": ("llama", {"stage": "nn", **FOURIER, "solver": "alternate", "solve_samples": 64}),
    "text-mean": ("demo", {"stage": "text", "pooling": "mean", "layer": 2, "solver": "exact", "num_batches": 40}),
    "text-last": ("llama", {"stage": "text"}),
    "mixed-norms": ("demo", {"stage": "mixed", **FOURIER, "train_layer_norms": True, "layer": 1, "eval_every": 1}),
    "mixed-numbers": ("llama", {"stage": "mixed", "pooling": "numbers", "train_layer_norms": True}),
    "mixed-mistral": ("mistral", {"stage": "mixed", "pooling": "mean", **SIGNLOG}),
    "mixed-qwen2": ("qwen2", {"stage": "mixed", "value_encoding": "raw"}),
    "mixed-qwen3": ("qwen3", {"stage": "mixed", "layer": 3, "pooling": "numbers"}),
    "mixed-bf16": ("demo", {"stage": "mixed", "dtype": "bf16"}),
}


@pytest.fixture(scope="module")
def checkpoint(binary, runs, families):
    """From a case's name to its checkpoint."""

    def train(name: str):
        file = runs / "chk" / f"{name}.safetensors"
        if not file.exists():
            family, settings = CASES[name]
            helpers.train(binary, runs, name, {"model_name": families(family), "eval_samples": 8, **settings})
        return file

    return train


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_the_binarys(name, binary, checkpoint):
    file, inputs = checkpoint(name), helpers.inputs_of(CASES[name][1]["stage"])
    model = numalign.NumberModel.from_checkpoint(file)
    difference = helpers.relative_difference(model.predict(inputs), helpers.predict(binary, file, inputs))
    assert difference <= BOUND, f"{difference:.2g}"


def test_best_projectors_are_the_binarys(binary, checkpoint):
    file = checkpoint("mixed-norms")
    inputs = helpers.inputs_of("mixed")
    best = numalign.NumberModel.from_checkpoint(file, best=True).predict(inputs)
    assert helpers.relative_difference(best, helpers.predict(binary, file, inputs, "--best")) <= BOUND
    with pytest.raises(numalign.NumalignError, match="no evaluation"):
        numalign.NumberModel.from_checkpoint(checkpoint("nn"), best=True)


def test_inputs_of_one_length_pass_together_without_changing_each_other(checkpoint):
    model = numalign.NumberModel.from_checkpoint(checkpoint("mixed-norms"))
    inputs = helpers.inputs_of("mixed") * 3
    one_by_one = np.concatenate([model.predict([one]) for one in inputs])
    assert helpers.relative_difference(model.predict(inputs), one_by_one) <= 1e-5
    assert model.predict([]).shape == (0,)
    assert helpers.relative_difference(model.predict(inputs, batch_size=2), one_by_one) <= 1e-5


def test_the_parts_make_the_prediction(checkpoint):
    model = numalign.NumberModel.from_checkpoint(checkpoint("nn-fourier"))
    embeddings = model.embed([12.34, 99.0])
    assert embeddings.shape == (2, 48) and embeddings.requires_grad
    states = model.frozen.backbone(inputs_embeds=embeddings[:, None]).last_hidden_state[:, -1]
    expected = model.predict([12.34, 99.0])
    assert helpers.relative_difference(model.read_out(states), expected) <= 1e-5
    assert helpers.relative_difference(model.read_out(model.hidden(["12.34", "99"])), expected) <= 1e-5


def test_a_loaded_model_is_attached_and_not_changed(checkpoint, families):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(families("llama"), dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    file = checkpoint("mixed-numbers")
    tokenizer = AutoTokenizer.from_pretrained(families("llama"))
    model = numalign.NumberModel.from_checkpoint(file, base, tokenizer)
    inputs = helpers.inputs_of("mixed")
    assert (
        helpers.relative_difference(model.predict(inputs), numalign.NumberModel.from_checkpoint(file).predict(inputs))
        <= 1e-6
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


def test_a_table_is_read_by_its_column(checkpoint):
    pandas = pytest.importorskip("pandas")
    model = numalign.NumberModel.from_checkpoint(checkpoint("nn"))
    table = pandas.DataFrame({"other": [1, 2], "input": [12.34, 99.0]})
    assert np.array_equal(model.predict(table), model.predict([12.34, 99.0]))
    with pytest.raises(numalign.NumalignError, match="no column `input`; it has a"):
        model.predict(pandas.DataFrame({"a": [1]}))


def test_another_base_is_refused(checkpoint, families):
    with pytest.raises(numalign.NumalignError, match="trained on another model"):
        numalign.NumberModel.from_checkpoint(checkpoint("text-last"), families("qwen2"))


def test_another_tokenizer_is_refused(binary, checkpoint, families, tmp_path):
    file = checkpoint("text-last")
    if "tokenizer_fingerprint" not in numalign.Checkpoint.read(file).metadata:
        pytest.skip("this binary stores no fingerprint of the tokenizer")
    folder = shutil.copytree(families("llama"), tmp_path / "llama")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(numalign.NumalignError, match="trained with another tokenizer"):
        numalign.NumberModel.from_checkpoint(file, folder)


def test_special_tokens_stand_around_the_text(binary, runs, families, tmp_path):
    if '"add_special_tokens"' not in helpers.run(binary, runs, "config", "schema"):
        pytest.skip("this binary has no key add_special_tokens")
    folder = shutil.copytree(families("qwen2"), tmp_path / "qwen2")
    document = json.loads((folder / "tokenizer.json").read_text())
    end = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    parts = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    document["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": {"<|endoftext|>": end},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    config = {"stage": "mixed", "model_name": str(folder), "add_special_tokens": True, "pooling": "mean"}
    file = helpers.train(binary, runs, "special", config)
    model, inputs = numalign.NumberModel.from_checkpoint(file), helpers.inputs_of("mixed")
    assert model.frozen.special_tokens() == ([0], [])
    assert helpers.relative_difference(model.predict(inputs), helpers.predict(binary, file, inputs)) <= BOUND


def test_inputs_that_the_model_cannot_take_are_named(checkpoint):
    nn = numalign.NumberModel.from_checkpoint(checkpoint("nn"))
    mixed = numalign.NumberModel.from_checkpoint(checkpoint("mixed-numbers"))
    for model, inputs, words in [
        (nn, ["1", "two"], "input 1: `two` is not a number"),
        (nn, "12", "takes a list"),
        (mixed, ["$$1"], "no closing `&&`"),
        (mixed, ["$$x&&"], "is not a finite decimal number"),
        (mixed, ["no number"], "no marked number"),
        (mixed, ["$$1&& " + "long " * 200], "positions, and the model has 128"),
        (mixed, ["$$1e300&&"], "overflows 32-bit floats"),
    ]:
        with pytest.raises(numalign.NumalignError) as error:
            model.predict(inputs)
        assert words in str(error.value)


def test_models_that_python_does_not_have_are_refused(checkpoint):
    file = checkpoint("nn")
    for name, words in [
        ("synthetic:small", "random weights that only the binary makes"),
        ("./nowhere", "there is no folder"),
        ("./nowhere.gguf", "there is no file"),
    ]:
        with pytest.raises(numalign.NumalignError, match=words):
            numalign.NumberModel.from_checkpoint(file, name)
