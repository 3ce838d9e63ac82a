"""The program ``numalign``, which this package brings along."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from .errors import NumalignError

#: Names another binary than the installed one.
VARIABLE = "PYNUMALIGN_BINARY"


def binary() -> Path:
    """The program: that of ``PYNUMALIGN_BINARY``, else the one installed with this package, else one on PATH.

    Raises:
        NumalignError: There is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise NumalignError(f"{VARIABLE} names {named}, which is no program")
        return Path(named).resolve()
    installed = Path(sysconfig.get_path("scripts")) / "numalign"
    if installed.is_file():
        return installed
    found = shutil.which("numalign")
    if found is None:
        raise NumalignError(
            "the program numalign is not installed",
            "pip install . in the repository brings it; or build it with cargo and name it in " + VARIABLE,
        )
    return Path(found)
