"""Runs on a table with a template, and runs that read several places: Python against the binary."""

from __future__ import annotations

import csv
import random

import helpers
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: predictions in Python are not compared")
pytest.importorskip("transformers", reason="transformers is not installed: predictions in Python are not compared")
pandas = pytest.importorskip("pandas", reason="pandas is not installed: predictions of tables are not compared")

from numalign import Checkpoint, NumberModel  # noqa: E402


def need_key(binary, folder, key):
    """Skips where the binary is of an older release."""
    if f'"{key}"' not in helpers.run(binary, folder, "config", "schema"):
        pytest.skip(f"this binary has no key {key}")


@pytest.fixture(scope="module")
def rows(runs):
    """200 rows whose columns have ranges of their own."""
    rng = random.Random(5)
    file = runs / "rows.csv"
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["age", "price", "sex", "total"])
        for _ in range(200):
            age, price = rng.randint(18, 90), round(rng.uniform(1000, 9000), 2)
            table.writerow([age, price, rng.choice("fm"), round(age * 2 + price / 100, 3)])
    return file


@pytest.mark.parametrize("encoding", ["standard", "fourier"])
def test_rows_are_answered_with_the_runs_template(encoding, binary, runs, rows):
    need_key(binary, runs, "eval_share")
    settings = {
        "stage": "mixed",
        "value_encoding": encoding,
        "dataset": {
            "file": str(rows),
            "input": "Aged $${age}&&, pays $${price}&&, {sex}.",
            "output": "total",
            "eval_share": 0.2,
        },
    }
    file = helpers.train(binary, runs, f"table-{encoding}", settings)
    read = Checkpoint.read(file)
    assert len(read.inputs) == 2 and read.inputs[0] != read.inputs[1]
    table = pandas.read_csv(rows).head(5)
    texts = [f"Aged $${row.age}&&, pays $${helpers.shortest(row.price)}&&, {row.sex}." for row in table.itertuples()]
    found = NumberModel.from_checkpoint(file).predict(table)
    assert helpers.relative_difference(found, helpers.predict(binary, file, texts)) <= 1e-4
    page = (helpers.REPOSITORY / "docs" / "CHECKPOINT.md").read_text()
    assert [key for key in read.metadata if f"`{key}`" not in page] == []


@pytest.mark.parametrize("family", ["demo", "qwen3"])
def test_several_places_are_read_side_by_side(family, binary, runs, families):
    need_key(binary, runs, "taps")
    taps = ["0:mean", "2:last", "-1:numbers", "1:numbers"]
    settings = {"stage": "mixed", "model_name": families(family), "taps": taps, "solver": "alternate"}
    file = helpers.train(binary, runs, f"taps-{family}", {**settings, "solve_samples": 64})
    read = Checkpoint.read(file)
    assert read.places == [(0, "mean"), (2, "last"), (None, "numbers"), (1, "numbers")]
    inputs = helpers.inputs_of("mixed")
    found = NumberModel.from_checkpoint(file).predict(inputs)
    assert helpers.relative_difference(found, helpers.predict(binary, file, inputs)) <= 1e-4
