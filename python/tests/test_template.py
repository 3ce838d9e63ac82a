"""Rows of a table as inputs, against the rules of the program; no binary and no torch."""

from __future__ import annotations

import numpy as np
import pytest
from numalign.errors import NumalignError
from numalign.template import RowText


def test_a_template_is_filled_from_a_row():
    row_text = RowText.parse("Patient aged $${age}&&, {sex}, {{index}} $${ bmi }&& {n} {ok} {share}.")
    assert row_text.columns == ["age", "sex", "bmi", "n", "ok", "share"]
    row = {"age": 59, "sex": "f", "bmi": "32.10", "n": np.int64(7), "ok": np.bool_(True), "share": np.float64(0.5)}
    assert row_text.fill(row) == "Patient aged $$59&&, f, {index} $$32.1&& 7 true 0.5."


def test_a_column_is_the_input_itself():
    row_text = RowText.parse("text")
    assert (row_text.columns, row_text.is_template) == (["text"], False)
    assert row_text.fill({"text": "a $$1&&"}) == "a $$1&&" and row_text.fill({"text": np.float64(2.5)}) == 2.5


def test_cells_that_do_not_fit_are_named():
    row_text = RowText.parse("$${age}&& {name}")
    for row, words in [
        ({"age": None, "name": "a"}, "column age is empty"),
        ({"age": float("nan"), "name": "a"}, "column age is empty"),
        ({"age": "old", "name": "a"}, "column age holds `old`, expected a decimal number"),
        ({"age": 1, "name": "a $$"}, "the template marks its numbers itself"),
    ]:
        with pytest.raises(NumalignError) as error:
            row_text.fill(row)
        assert words in str(error.value)
