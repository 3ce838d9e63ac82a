"""Values to what the projectors see, and back.

The formulas are those of ``crates/projector/src/encoding.rs``; their numbers come from the checkpoint's metadata
``encoder``, so that nothing has to be derived from the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST = np.finfo(np.float64).max


@dataclass(frozen=True)
class Encoding:
    """``x = (u(v) - offset) / scale``, where ``u(v) = v``, or ``sign(v)·ln(1 + |v|/threshold)`` with a threshold."""

    offset: float
    scale: float
    threshold: float | None

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Encoding:
        """From the fields of ``encoder``, or of its ``target``."""
        threshold = fields.get("threshold")
        return cls(float(fields["offset"]), float(fields["scale"]), None if threshold is None else float(threshold))

    def encode(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Encoded scalars of ``values``; same shape."""
        u = np.asarray(values, dtype=np.float64)
        if self.threshold is not None:
            u = np.copysign(np.log1p(np.abs(u) / self.threshold), u)
        with np.errstate(over="ignore"):
            return ((u - self.offset) / self.scale).astype(np.float32)

    def decode(self, encoded: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Values of encoded scalars; same shape. The largest finite float where the inverse would overflow."""
        u = np.asarray(encoded, dtype=np.float64) * self.scale + self.offset
        if self.threshold is None:
            return u
        with np.errstate(over="ignore"):
            return np.copysign(np.minimum(np.expm1(np.abs(u)) * self.threshold, _LARGEST), u)


@dataclass(frozen=True)
class InputEncoder:
    """What the input projector sees of a value: a scalar, and with ``fourier`` sine and cosine for each period."""

    scalar: Encoding
    origin: float
    periods: tuple[float, ...]

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> InputEncoder:
        """From the checkpoint's ``encoder``."""
        periods = tuple(float(period) for period in fields.get("periods", ()))
        return cls(Encoding.from_fields(fields), float(fields.get("origin", 0.0)), periods)

    @property
    def width(self) -> int:
        """Columns ``w`` of the input projector: 1, or ``1 + 2·periods``."""
        return 1 + 2 * len(self.periods)

    def encode(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Values ``[n]`` to ``[n, w]``: the scalar, then sine and cosine of ``2π(v - origin)/period`` per period."""
        values = np.asarray(values, dtype=np.float64).reshape(-1)
        columns = [self.scalar.encode(values)]
        for period in self.periods:
            turns = (values - self.origin) / period
            angle = 2 * np.pi * (turns - np.floor(turns))
            columns += [np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)]
        return np.stack(columns, axis=1)
