"""A checkpoint file: checked, then its metadata and tensors. ``docs/CHECKPOINT.md`` describes every key."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from safetensors import SafetensorError, safe_open

from .encoding import Encoding, InputEncoder
from .errors import NumalignError

FORMAT, VERSION = "numalign-checkpoint", "1"

#: The four projector tensors.
PROJECTORS = (
    "input_projection.weight",
    "input_projection.bias",
    "output_projection.weight",
    "output_projection.bias",
)
_NORMS = "layer_norms."
_BEST = "best."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file in memory."""

    path: Path
    #: Every metadata entry, as the text that the file holds.
    metadata: Mapping[str, str]
    #: Every tensor by its name.
    tensors: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Reads and verifies a file.

        Raises:
            NumalignError: The file cannot be read, is no checkpoint, is damaged, or has another format version.
        """
        path = Path(path)
        if not path.is_file():
            raise NumalignError(f"there is no file {path}", "a run writes chk/<run_id>.safetensors when it ends")
        try:
            with safe_open(path, framework="np") as file:
                metadata = dict(file.metadata() or {})
                if metadata.get("format") != FORMAT:
                    raise NumalignError(
                        f"{path} is not a numalign checkpoint: its metadata does not say `format: {FORMAT}`",
                        "give a file that `numalign launch` wrote",
                    )
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (OSError, SafetensorError) as error:
            raise NumalignError(f"{path} is not a whole safetensors file ({error})") from error
        found = metadata.get("format_version")
        if found != VERSION:
            raise NumalignError(
                f"{path} has format version {found}; this package reads version {VERSION}",
                "use the release of numalign that wrote the file",
            )
        digest = file_digest(metadata, tensors)
        if digest != metadata.get("file_digest"):
            raise NumalignError(
                f"{path} is damaged: its content has digest {digest[:16]}, its metadata says "
                f"{metadata.get('file_digest', '')[:16]}"
            )
        return cls(path, metadata, tensors)

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that determines the result, under the names of ``config``."""
        recipe: dict[str, Any] = json.loads(self.metadata["config"])
        return recipe

    @property
    def stage(self) -> str:
        """``nn``, ``text`` or ``mixed``."""
        return self.metadata["stage"]

    @property
    def step(self) -> int:
        """Steps that were made."""
        return int(self.metadata["step"])

    @property
    def hidden_size(self) -> int:
        """Width ``d`` of the frozen model."""
        return int(self.metadata["hidden_size"])

    @property
    def inputs(self) -> list[InputEncoder]:
        """The encoding of the numbers in an input, by place; the last one holds for all that follow."""
        fields = json.loads(self.metadata["encoder"])
        return [InputEncoder.from_fields(one) for one in fields.get("places", [fields])]

    @property
    def targets(self) -> Encoding:
        """The encoding of targets and predictions."""
        fields = json.loads(self.metadata["encoder"])
        return Encoding.from_fields(fields.get("target", fields))

    @property
    def places(self) -> list[tuple[int | None, str]]:
        """Where hidden states are read, in the order of the output projector's columns: block and pooling.

        The block is counted from 1; 0 is the embeddings, and None the output of the final norm.
        """
        taps = json.loads(self.metadata.get("taps", "[]"))
        if not taps:
            recipe = self.recipe
            return [(recipe.get("layer"), recipe["readout"])]
        places: list[tuple[int | None, str]] = []
        for tap in taps:
            layer, pooling = tap.split(":")
            places.append((None if layer == "-1" else int(layer), pooling))
        return places

    @property
    def history(self) -> list[dict[str, Any]]:
        """The evaluations during training, first to last; errors in value units."""
        history: list[dict[str, Any]] = json.loads(self.metadata["history"])
        return history

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the smallest error; None for a run without ``eval_every``."""
        text = self.metadata.get("best")
        return None if text is None else json.loads(text)

    def projectors(self, best: bool = False) -> dict[str, npt.NDArray[np.float32]]:
        """The four projector tensors by name; with ``best`` those of the best evaluation.

        Raises:
            NumalignError: ``best`` where the run made no evaluation.
        """
        return {name: self._tensor(name, best) for name in PROJECTORS}

    def layer_norms(self, best: bool = False) -> dict[str, npt.NDArray[np.float32]]:
        """Layer norms that were trained, by the frozen model's own names; empty where they were not."""
        names = json.loads(self.metadata.get("layer_norms", "[]"))
        return {name: self._tensor(_NORMS + name, best) for name in names}

    def _tensor(self, name: str, best: bool) -> npt.NDArray[np.float32]:
        if best and self.best is None:
            raise NumalignError(
                f"{self.path} has no best projectors: its run made no evaluation",
                "train with eval_every: 1, or leave best out",
            )
        try:
            return self.tensors[_BEST + name if best else name]
        except KeyError:
            raise NumalignError(f"{self.path} is damaged: tensor {name} is missing") from None


def file_digest(metadata: Mapping[str, str], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """BLAKE3 over metadata (without ``file_digest``) and tensors, each length-prefixed, in name order; in hex."""
    hasher = blake3(derive_key_context="numalign 2026-11 checkpoint file")

    def field(content: bytes) -> None:
        hasher.update(len(content).to_bytes(8, "little"))
        hasher.update(content)

    for key in sorted(metadata, key=str.encode):
        if key != "file_digest":
            field(key.encode())
            field(metadata[key].encode())
    for name in sorted(tensors, key=str.encode):
        tensor = tensors[name]
        field(name.encode())
        field(b"".join(size.to_bytes(8, "little") for size in tensor.shape))
        field(np.ascontiguousarray(tensor).tobytes())
    return hasher.hexdigest()
