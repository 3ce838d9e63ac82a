"""Writes diabetes.csv: the diabetes progression data that ships inside scikit-learn, 442 patients.

    python -m venv venv && venv/bin/pip install scikit-learn
    venv/bin/python examples/diabetes/write_csv.py

Efron, Hastie, Johnstone and Tibshirani, "Least angle regression", Annals of Statistics, 2004. The table is not part of this
repository.
"""

import csv
import pathlib

from sklearn.datasets import load_diabetes


def main():
    data = load_diabetes(scaled=False)
    # Total cholesterol, its two parts, their ratio, the logarithm of triglycerides, blood sugar.
    names = ["age", "sex", "bmi", "pressure", "tc", "ldl", "hdl", "tch", "ltg", "glucose"]
    path = pathlib.Path(__file__).with_name("diabetes.csv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "progression"])
        for row, target in zip(data.data, data.target):
            cells = [f"{value:g}" for value in row]
            cells[1] = "woman" if row[1] == 2 else "man"
            writer.writerow([*cells, f"{target:g}"])
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
