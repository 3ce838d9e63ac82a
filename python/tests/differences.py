"""Prints the table of docs/PYTHON.md: the largest relative difference of predictions in Python and by the binary.

Usage: python python/tests/differences.py      (needs a binary, torch and transformers; about two minutes)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import helpers  # noqa: E402
import numalign  # noqa: E402

ENCODINGS = {
    "standard": {},
    "raw": {"value_encoding": "raw"},
    "signlog": {"value_encoding": "signlog", "min_val": 0.1, "max_val": 1e4},
    "fourier": {"value_encoding": "fourier", "fourier_periods": 3},
}
POOLINGS = ("last", "mean", "numbers")
FAMILIES = ("demo", "llama", "mistral", "qwen2", "qwen3")


def main() -> None:
    """One run for each family, encoding and pooling; stage mixed."""
    binary = helpers.find_binary()
    print("| family | " + " | ".join(ENCODINGS) + " |")
    print("|---" * (1 + len(ENCODINGS)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for family in FAMILIES:
            model = family if family == "demo" else str(helpers.write_family(folder / family, family))
            row = []
            for encoding, settings in ENCODINGS.items():
                largest = 0.0
                for pooling in POOLINGS:
                    config = {"stage": "mixed", "model_name": model, "pooling": pooling, **settings}
                    file = helpers.train(binary, folder, f"{family}-{encoding}-{pooling}", config)
                    found = numalign.NumberModel.from_checkpoint(file).predict(helpers.QUESTIONS)
                    expected = helpers.predict(binary, file, helpers.QUESTIONS)
                    largest = max(largest, helpers.relative_difference(found, expected))
                row.append(f"{largest:.1e}")
            print(f"| {family} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
