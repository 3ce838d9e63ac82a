"""The one kind of error that this package raises on purpose: what is wrong in plain words, and what to do about it."""

from __future__ import annotations


class NumalignError(Exception):
    """Something that the caller can mend.

    Args:
        message: What is wrong, with the values that matter.
        hint: What to do about it, where that can be said.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.message = message
        self.hint = hint
