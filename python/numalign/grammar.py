"""Marked numbers, ``$$12.34&&`` or ``<num>12.34</num>`` inside a text, read as the program reads them.

Numbers in other forms, such as ``1,234`` or ``12.5 %``, are read by the program alone.
"""

from __future__ import annotations

import math
import re

from .errors import NumalignError

OPEN, CLOSE = "$$", "&&"

# Stricter than `float`: no spaces, `inf`, `nan` or `_`, and digits on both sides of a point.
_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")


def with_marks(text: str) -> str:
    """``text`` with ``$$`` and ``&&`` in place of ``<num>`` and ``</num>``."""
    return text.replace("<num>", OPEN).replace("</num>", CLOSE)


def parse_number(text: str) -> float | None:
    """The number that ``text`` is; None where it is none, or is too large for a float."""
    if not _DECIMAL.match(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def parse_value(text: str) -> float | None:
    """The number that ``text`` is, bare (``12.34``) or marked (``$$12.34&&``); None where it is none."""
    text = with_marks(text)
    if text.startswith(OPEN) and text.endswith(CLOSE) and len(text) >= 4:
        text = text[2:-2]
    return parse_number(text)


def split(text: str) -> list[str | float]:
    """Plain pieces and marked numbers of ``text``, in order; plain pieces are never empty.

    Raises:
        NumalignError: A ``$$`` that is not closed, or that does not hold a decimal number.
    """
    segments: list[str | float] = []
    position = 0
    while (start := text.find(OPEN, position)) >= 0:
        if start > position:
            segments.append(text[position:start])
        end = text.find(CLOSE, start + 2)
        if end < 0:
            raise NumalignError(f"the `$$` at character {start} has no closing `&&`: {text[start : start + 40]!r}")
        value = parse_number(text[start + 2 : end])
        if value is None:
            raise NumalignError(
                f"the `$$` at character {start} does not open a number: {text[start + 2 : end][:40]!r} "
                "is not a finite decimal number"
            )
        segments.append(value)
        position = end + 2
    if position < len(text):
        segments.append(text[position:])
    return segments


def shortest(value: float) -> str:
    """``value`` in the fewest digits that read back to the same float, without an exponent."""
    text = repr(float(value))
    if "e" in text or "E" in text:
        from decimal import Decimal

        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def marked(value: float) -> str:
    """``value`` between its marks."""
    return f"{OPEN}{shortest(value)}{CLOSE}"
