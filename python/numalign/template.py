"""Rows of a table as inputs: the column or the template that ``dataset.input`` names.

In a template ``{column}`` stands for the cell's text and ``$${column}&&`` for its number, marked; ``{{`` and ``}}`` are
braces. The rules are those of ``crates/data/src/table/template.rs``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import grammar
from .errors import NumalignError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class RowText:
    """How the input of a sample is made of a row.

    Attributes:
        pieces: Plain text, or a column with whether its number is wanted between marks. Of a single column, only that.
        is_template: Whether there is a template; otherwise the cell itself is the input.
    """

    pieces: tuple[str | tuple[str, bool], ...]
    is_template: bool

    @classmethod
    def parse(cls, setting: str) -> RowText:
        """From ``dataset.input``: a template where it holds a brace, else the name of a column."""
        if "{" not in setting and "}" not in setting:
            return cls(((setting, False),), False)
        pieces: list[str | tuple[str, bool]] = []
        plain, position = "", 0
        for found in _PIECE.finditer(setting):
            plain += setting[position : found.start()]
            position = found.end()
            name = found[1]
            if name is None:
                plain += found[0][0]
                continue
            is_marked = plain.endswith(grammar.OPEN)
            if plain:
                pieces.append(plain)
                plain = ""
            pieces.append((name.strip(), is_marked))
        plain += setting[position:]
        if plain:
            pieces.append(plain)
        return cls(tuple(pieces), True)

    @property
    def columns(self) -> list[str]:
        """The columns that are needed, each once."""
        return list(dict.fromkeys(piece[0] for piece in self.pieces if isinstance(piece, tuple)))

    def fill(self, row: Mapping[str, Any]) -> str | float:
        """The input of a row.

        Raises:
            NumalignError: A cell that is empty, or is no number where one is needed.
        """
        if not self.is_template:
            name = self.columns[0]
            value = row[name]
            return value if isinstance(value, str) else _number(name, value)
        text = ""
        for piece in self.pieces:
            if isinstance(piece, str):
                text += piece
            else:
                name, is_marked = piece
                text += grammar.shortest(_number(name, row[name])) if is_marked else _text(name, row[name])
        return text


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        number = grammar.parse_value(value)
        if number is None:
            raise NumalignError(f"column {name} holds `{value}`, expected a decimal number")
        return number
    if _is_missing(value):
        raise NumalignError(f"column {name} is empty")
    return float(value)


def _text(name: str, value: Any) -> str:
    if _is_missing(value):
        raise NumalignError(f"column {name} is empty")
    if isinstance(value, str):
        if grammar.OPEN in value:
            raise NumalignError(f"column {name} holds `{grammar.OPEN}`, and the template marks its numbers itself")
        return value
    # NumPy's truth values, too.
    if type(value).__name__ in ("bool", "bool_"):
        return "true" if value else "false"
    return grammar.shortest(float(value)) if isinstance(value, float) or hasattr(value, "dtype") else str(value)


def _is_missing(value: Any) -> bool:
    """None, and what pandas puts into an empty cell."""
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and math.isnan(value))
    )
