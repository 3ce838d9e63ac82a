"""numalign in Python: train projectors for a frozen language model, and predict numbers with them.

>>> import numalign
>>> run = numalign.launch({"stage": "nn", "model_name": "demo", "solver": "alternate"})
>>> run.model().predict([12.5, 80.0])
array([12.5..., 80.0...])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .binary import binary
from .checkpoint import Checkpoint
from .errors import NumalignError
from .run import Run, launch

if TYPE_CHECKING:
    from .model import NumberModel

__all__ = ["Checkpoint", "NumalignError", "NumberModel", "Run", "binary", "launch"]


def __getattr__(name: str) -> Any:
    # Training needs no torch; it is imported where a model is asked for.
    if name == "NumberModel":
        try:
            from .model import NumberModel
        except ModuleNotFoundError as error:
            raise NumalignError(
                f"NumberModel needs the package {error.name}, which is not installed", "pip install torch transformers"
            ) from error
        return NumberModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
