"""Runs of the real binary that are short, and small random model folders of every family."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "crates" / "model" / "assets" / "demo-gpt2"

#: Ten steps of one worker.
SHORT = {"num_epochs": 2, "num_batches": 5, "batch_size": 8, "workers": 1}

NUMBERS = ["12.34", "99", "$$0.5&&", "61.7"]
TEXTS = ["The total is $$12.50&&", "$$99&&", "about $$0.5&& of it", "61.7"]
QUESTIONS = [
    "Which is the smallest of $$12.5&&, $$45.2&& and $$7.81&&?",
    "Given $$81&& and $$99.5&&: which is the smallest?",
    "$$40&&",
    "33.3",
]


def find_binary() -> str | None:
    """The binary under test: ``PYNUMALIGN_BINARY``, else a build of this repository, else an installed one."""
    named = os.environ.get("PYNUMALIGN_BINARY")
    if named:
        return named
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    for profile in ("release", "debug"):
        if (target / profile / "numalign").is_file():
            return str(target / profile / "numalign")
    return shutil.which("numalign")


def run(binary: str, folder: Path, *arguments: str) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run([binary, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def train(binary: str, folder: Path, name: str, settings: dict) -> Path:
    """The final checkpoint of a short run."""
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({**SHORT, **settings}))
    run(binary, folder, "launch", "--config", str(file), "--no-eval")
    return folder / "chk" / f"{name}.safetensors"


def predict(binary: str, checkpoint: Path, inputs: list[str], *more: str) -> np.ndarray:
    """What the binary predicts, ``[n]``."""
    text = run(binary, checkpoint.parent.parent, "predict", "--json", "--checkpoint", str(checkpoint), *more, *inputs)
    return np.array([row["prediction"] for row in json.loads(text)["predictions"]])


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest ``|found - expected| / |expected|``."""
    return float(np.max(np.abs(found - expected) / np.abs(expected)))


def shortest(value: float) -> str:
    """A number as the program writes it: ``12`` for 12.0."""
    return repr(float(value)).removesuffix(".0")


def inputs_of(stage: str) -> list[str]:
    """Inputs that a checkpoint of the stage takes."""
    return {"nn": NUMBERS, "text": TEXTS, "mixed": QUESTIONS}[stage]


def write_family(folder: Path, family: str) -> Path:
    """A random model of a Llama-style family, with the demo model's tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    more = {"head_dim": 12} if family == "qwen3" else {}
    if family == "llama":
        more["rope_parameters"] = {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }  # fmt: skip
    if family == "mistral":
        more["sliding_window"] = 64
    config = transformers.AutoConfig.for_model(
        family, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80,
        num_hidden_layers=3, vocab_size=640, max_position_embeddings=128, rms_norm_eps=1e-6, **more,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.copy_(1 + 0.2 * torch.randn_like(tensor))
            else:
                tensor.normal_(0, 0.3 if "embed" in name else 0.15)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder
