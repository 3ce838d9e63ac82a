"""Marked numbers and encodings, against the rules of the program; no binary and no torch."""

from __future__ import annotations

import numpy as np
import pytest
from numalign.encoding import Encoding, InputEncoder
from numalign.errors import NumalignError
from numalign.grammar import marked, parse_value, split, with_marks


def test_texts_are_split_at_marked_numbers():
    assert split("") == []
    assert split("plain $5 & b && c") == ["plain $5 & b && c"]
    assert split("Given $$-1.5&& and $$2e-3&&: which?") == ["Given ", -1.5, " and ", 0.002, ": which?"]
    assert split("$$1&&$$+2&&é&") == [1.0, 2.0, "é&"]
    assert split(with_marks("<num>5</num> and $$1&&")) == [5.0, " and ", 1.0]


@pytest.mark.parametrize("piece", ["", " 1", "inf", "0x10", "1_000", ".5", "5.", "1e", "--1", "١", "1e999"])
def test_what_is_no_decimal_number_is_refused(piece):
    with pytest.raises(NumalignError, match="character 3"):
        split(f"ab $${piece}&&")
    assert parse_value(piece) is None


def test_numbers_are_written_in_the_fewest_digits_without_exponent():
    for value, text in [
        (12.5, "12.5"),
        (60.0, "60"),
        (1e21, "1" + "0" * 21),
        (1e-7, "0.0000001"),
        (0.1 + 0.2, "0.30000000000000004"),
    ]:
        assert marked(value) == f"$${text}&&" and parse_value(marked(value)) == value


def test_encodings_are_undone():
    values = np.array([-1e9, -3.0, 0.0, 1e-6, 12.5, 1e9])
    signlog = Encoding(offset=1.5, scale=7.0, threshold=1e-6)
    assert np.allclose(signlog.decode(signlog.encode(values)), values, rtol=2e-5, atol=1e-8)
    assert signlog.decode(np.float32(3e38)) == np.finfo(np.float64).max
    assert Encoding(50.0, 28.86751345948129, None).encode([50.0, 100.0]) == pytest.approx([0.0, 3**0.5], rel=1e-6)


def test_fourier_features_repeat_with_their_periods():
    fields = {"kind": "fourier", "offset": 4.0, "scale": 2.0, "origin": 0.0, "periods": [8.0, 4.0, 2.0]}
    encoder = InputEncoder.from_fields(fields)
    first, second = encoder.encode([0.5, 4.5])
    assert encoder.width == 7 and first.dtype == np.float32
    assert first[1] == pytest.approx(-second[1]) and first[3:] == pytest.approx(second[3:])
    assert first[5] == pytest.approx(1.0)
