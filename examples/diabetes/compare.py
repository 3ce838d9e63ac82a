"""Trains examples/diabetes/diabetes.yaml with five seeds, and ridge regression on the same rows.

    venv/bin/python examples/diabetes/compare.py [NUMALIGN]

Each seed holds out other rows. `numalign eval --json` names them, so that scikit-learn's RidgeCV is fitted on the other rows
and judged on the same. R² of both, and of the projectors without the language model, in a table for README.md.
"""

import csv
import json
import pathlib
import statistics
import subprocess
import sys

from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = pathlib.Path(__file__).resolve().parent
TABLE = FOLDER / "diabetes.csv"


def numalign(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True, cwd=FOLDER.parents[1]).stdout


def table():
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    inputs = [[float(value == "woman") if name == "sex" else float(value) for name, value in row.items()] for row in rows]
    return [row[:-1] for row in inputs], [row[-1] for row in inputs]


def ridge(inputs, targets, held_out):
    """R² on the held-out rows; their numbers count from 1."""
    train = [place for place in range(len(targets)) if place + 1 not in held_out]
    test = [number - 1 for number in held_out]
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=[10 ** (power / 4) for power in range(-12, 13)]))
    model.fit([inputs[place] for place in train], [targets[place] for place in train])
    return r2_score([targets[place] for place in test], model.predict([inputs[place] for place in test]))


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "numalign"
    inputs, targets = table()
    rows = []
    for seed in range(5):
        run = f"diabetes-{seed}"
        numalign(program, "launch", "--config", "examples/diabetes/diabetes.yaml", "--run-id", run, "--seed", str(seed), "--no-eval")
        checkpoint = f"chk/{run}.safetensors"
        text = numalign(program, "eval", "--json", "--ablation", "--checkpoint", checkpoint, "--dataset", str(TABLE))
        report = json.loads(text)
        rows.append((seed, len(report["rows"]), report["r2"], ridge(inputs, targets, report["rows"]), report["ablation"]["r2"]))
        print("| {} | {} | {:.3f} | {:.3f} | {:.3f} |".format(*rows[-1]), flush=True)
    means = [statistics.mean(row[place] for row in rows) for place in (2, 3, 4)]
    print("| mean | | {:.3f} | {:.3f} | {:.3f} |".format(*means))


if __name__ == "__main__":
    main()
