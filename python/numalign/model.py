"""Predictions of a trained run in PyTorch, on a frozen model that ``transformers`` loads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from . import grammar
from .checkpoint import Checkpoint
from .encoding import InputEncoder
from .errors import NumalignError
from .frozen import FrozenModel, Place
from .template import RowText
from .tokenizer import COMPILED_IN
from .tokenizer import fingerprint as tokenizer_fingerprint

if TYPE_CHECKING:
    import pandas

#: Positions that pass through the model at once: a bound on the memory of activations.
_MOST_POSITIONS = 2048


@dataclass
class _Prepared:
    """One input as the model takes it."""

    #: Token ids, or the row of a number in ``values`` and the positions that it fills.
    pieces: list[list[int] | tuple[int, int]]
    values: list[float]

    @property
    def length(self) -> int:
        return sum(piece[1] if isinstance(piece, tuple) else len(piece) for piece in self.pieces)


class NumberModel:
    """The projectors of a checkpoint on top of the frozen model that they were trained with.

    Attributes:
        checkpoint: What the file says.
        input_projection: ``Linear(w, d)``: encoded numbers to input embeddings.
        output_projection: ``Linear(k·d, 1)``: hidden states at the k read positions to one encoded number.
    """

    def __init__(self, checkpoint: Checkpoint, best: bool = False) -> None:
        self.checkpoint = checkpoint
        self._recipe = checkpoint.recipe
        self._inputs, self._targets = checkpoint.inputs, checkpoint.targets
        tensors = {name: torch.from_numpy(values.copy()) for name, values in checkpoint.projectors(best).items()}
        self.input_projection = _linear(tensors, "input_projection")
        self.output_projection = _linear(tensors, "output_projection")
        self._norms = {name: torch.from_numpy(values.copy()) for name, values in checkpoint.layer_norms(best).items()}
        self._places: list[tuple[Place, str]] = checkpoint.places
        self._adds_special_tokens = bool(self._recipe.get("add_special_tokens", False))
        self._row_text = RowText.parse(self._recipe.get("dataset_input") or "input")
        self._frozen: FrozenModel | None = None
        self._device: str | torch.device = "cpu"

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        model: str | os.PathLike[str] | torch.nn.Module | None = None,
        tokenizer: Any = None,
        *,
        best: bool = False,
        device: str | torch.device = "cpu",
    ) -> NumberModel:
        """The model of a checkpoint file.

        Args:
            path: A file that a run wrote, such as ``chk/run.safetensors``.
            model: The frozen model: a folder, a ``.gguf`` file, a hub id, ``demo``, or a model that ``transformers``
                loaded. By default the one that the checkpoint names, which is loaded when it is first needed.
            tokenizer: With a loaded ``model``: its tokenizer.
            best: Take the projectors of the best evaluation during training instead of the last ones.
            device: Where a model that this method loads lies. On other devices than the CPU the last digits differ.

        Raises:
            NumalignError: The file or the model cannot be read, or the checkpoint was trained on another model.
        """
        number_model = cls(Checkpoint.read(path), best)
        number_model._device = device
        if isinstance(model, torch.nn.Module):
            return number_model.attach(model, tokenizer)
        if model is not None:
            number_model._load(os.fspath(model))
        return number_model

    def attach(self, model: torch.nn.Module, tokenizer: Any = None) -> NumberModel:
        """Puts the projectors on a model that is already loaded; ``model`` is not changed.

        Args:
            model: Of ``transformers``, with or without its head, in float32 or in the type of its files.
            tokenizer: Its tokenizer; stage ``nn`` needs none.

        Returns:
            This object.

        Raises:
            NumalignError: The checkpoint was trained on another model.
        """
        self._use(FrozenModel(model, tokenizer), type(model).__name__)
        return self

    def predict(
        self, inputs: Sequence[str | float] | npt.NDArray[Any] | pandas.DataFrame, batch_size: int | None = None
    ) -> npt.NDArray[np.float64]:
        """Predictions in value units, ``[n]``, one for each input and in their order.

        Args:
            inputs: Numbers (stage ``nn``), or texts whose numbers are marked, ``$$12.34&&``; a bare number is marked
                first. Of a DataFrame, what the run's ``dataset.input`` makes of each row: a template over columns,
                or a column, by default ``input``.
            batch_size: Most inputs that pass through the model at once. By default as many as 2,048 positions hold.

        Raises:
            NumalignError: An input that the model cannot take, named by its place.
        """
        return self.read_out(self.hidden(inputs, batch_size))

    def hidden(
        self, inputs: Sequence[str | float] | npt.NDArray[Any] | pandas.DataFrame, batch_size: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Hidden states at the read position, ``[n, k·d]``, one row for each input: what ``read_out`` takes.

        Raises:
            NumalignError: As :meth:`predict`.
        """
        prepared = []
        for index, value in enumerate(_rows(inputs, self._row_text)):
            try:
                prepared.append(self._prepare(value))
            except NumalignError as error:
                raise NumalignError(f"input {index}: {error.message}", error.hint) from None
        hidden = np.empty((len(prepared), self.output_projection.in_features), dtype=np.float32)
        with torch.no_grad():
            for batch in _batches(prepared, batch_size):
                hidden[batch] = self._read([prepared[index] for index in batch]).cpu().numpy()
        return hidden

    def embed(self, values: npt.ArrayLike, place: int = 0) -> torch.Tensor:
        """Input embeddings of values ``[n]``: ``[n, d]`` float32, with a gradient to ``input_projection``.

        Args:
            values: Numbers in value units.
            place: Which number of an input they are, from 0. It matters only to a run on a table whose columns have
                ranges of their own.
        """
        encoded = torch.from_numpy(self._encoder(place).encode(values)).to(self.input_projection.weight.device)
        embeddings: torch.Tensor = self.input_projection(encoded)
        return embeddings

    def read_out(self, hidden: torch.Tensor | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Predictions in value units, ``[n]``, of hidden states ``[n, k·d]`` at the read position."""
        states = torch.as_tensor(hidden, dtype=torch.float32, device=self.output_projection.weight.device)
        with torch.no_grad():
            encoded = self.output_projection(states)[..., 0]
        return self._targets.decode(encoded.cpu().numpy())

    def _encoder(self, place: int) -> InputEncoder:
        return self._inputs[min(place, len(self._inputs) - 1)]

    @property
    def frozen(self) -> FrozenModel:
        """The frozen model; loaded now where it was not before."""
        if self._frozen is None:
            self._load(self.checkpoint.metadata["base_model"])
        assert self._frozen is not None
        return self._frozen

    def _load(self, name: str) -> None:
        self._use(FrozenModel.load(name, self._recipe.get("dtype", "f32"), self._device), name)

    def _use(self, frozen: FrozenModel, name: str) -> None:
        stored, found = self.checkpoint.metadata["base_fingerprint"], frozen.fingerprint()
        if stored != found:
            raise NumalignError(
                f"{self.checkpoint.path} was trained on another model: its fingerprint is "
                f"{stored[:16]}, that of {name} is {found[:16]}",
                f"the checkpoint names {self.checkpoint.metadata['base_model']}; load that in float32, not rounded",
            )
        self._check_tokenizer(frozen, name)
        self._frozen = frozen
        for module in (self.input_projection, self.output_projection):
            module.to(frozen.device)
        self._norms = {name: values.to(frozen.device) for name, values in self._norms.items()}

    def _check_tokenizer(self, frozen: FrozenModel, name: str) -> None:
        stored = self.checkpoint.metadata.get("tokenizer_fingerprint")
        if stored is None or stored == COMPILED_IN or frozen.tokenizer is None:
            return
        found = tokenizer_fingerprint(frozen.tokenizer, self._adds_special_tokens)
        if found is None or found == stored:
            return
        plain = frozen.plain_tokenizer()
        if plain is not None and tokenizer_fingerprint(plain, self._adds_special_tokens) == stored:
            frozen.tokenizer = plain
            return
        problem = (
            f"{self.checkpoint.path} was trained with another tokenizer: its fingerprint is {stored[:16]}, that of the "
            f"tokenizer of {name} is {found[:16]}"
        )
        if frozen.is_gguf:
            # transformers describes the tokenizer inside a GGUF file in its own way; the ids may be the same.
            warnings.warn(problem, stacklevel=2)
            return
        raise NumalignError(problem, "give the tokenizer of the training")

    def _prepare(self, value: str | float) -> _Prepared:
        prepared = _Prepared([], [])
        if self.checkpoint.stage == "nn":
            number = grammar.parse_value(value) if isinstance(value, str) else float(value)
            if number is None:
                raise NumalignError(f"`{value}` is not a number", "this checkpoint is of stage nn, which reads numbers")
            prepared.values.append(number)
            prepared.pieces.append((0, int(self._recipe["numeric_positions"])))
        else:
            text = grammar.with_marks(value) if isinstance(value, str) else grammar.marked(float(value))
            if grammar.parse_number(text) is not None:
                text = f"{grammar.OPEN}{text}{grammar.CLOSE}"
            for segment in grammar.split(text) if self.checkpoint.stage == "mixed" else [text]:
                if isinstance(segment, str):
                    prepared.pieces.append(self.frozen.token_ids(segment))
                else:
                    prepared.pieces.append((len(prepared.values), 1))
                    prepared.values.append(segment)
            if self._adds_special_tokens:
                before, after = self.frozen.special_tokens()
                prepared.pieces = [before, *prepared.pieces, after]
        length, most = prepared.length, self.frozen.max_positions
        if length == 0:
            raise NumalignError("the text has no tokens")
        if length > most:
            raise NumalignError(f"it fills {length} positions, and the model has {most}")
        for place, number in enumerate(prepared.values):
            if not np.isfinite(self._encoder(place).encode([number])).all():
                raise NumalignError(f"its number {number} overflows 32-bit floats when encoded")
        if not prepared.values and any(pooling == "numbers" for _, pooling in self._places):
            raise NumalignError("it has no marked number, and pooling numbers reads there")
        return prepared

    def _read(self, batch: list[_Prepared]) -> torch.Tensor:
        """Hidden states at the read position of inputs of one length, ``[b, k·d]``."""
        rows, is_number = [], []
        for prepared in batch:
            numbers = [self.embed([number], place)[0] for place, number in enumerate(prepared.values)]
            parts, marks = [], []
            for piece in prepared.pieces:
                if isinstance(piece, tuple):
                    row, repeat = piece
                    parts.append(numbers[row].expand(repeat, -1))
                    marks += [True] * repeat
                elif piece:
                    parts.append(self.frozen.embed_tokens(piece).float())
                    marks += [False] * len(piece)
            rows.append(torch.cat(parts))
            is_number.append(torch.tensor(marks, device=self.frozen.device))
        states = self.frozen.hidden(torch.stack(rows), [layer for layer, _ in self._places], self._norms)
        pooled = [
            _pool(state, pooling, torch.stack(is_number))
            for state, (_, pooling) in zip(states, self._places, strict=True)
        ]
        return torch.cat(pooled, dim=1)


def _pool(states: torch.Tensor, pooling: str, is_number: torch.Tensor) -> torch.Tensor:
    """``[b, t, d]`` to ``[b, d]``: the last position, the mean of all, or of those that projected numbers fill."""
    if pooling == "last":
        return states[:, -1]
    if pooling == "mean":
        return states.mean(dim=1)
    if pooling == "numbers":
        weights = is_number.to(states.dtype)[..., None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
    raise NumalignError(f"pooling `{pooling}` is not known; known: last, mean, numbers")


def _batches(prepared: list[_Prepared], batch_size: int | None) -> list[list[int]]:
    """Indices of inputs that pass together. They are of one length: nothing is padded, so none changes another."""
    by_length: dict[int, list[int]] = {}
    for index, one in enumerate(prepared):
        by_length.setdefault(one.length, []).append(index)
    batches = []
    for length, indices in sorted(by_length.items()):
        size = batch_size or max(1, _MOST_POSITIONS // length)
        batches += [indices[start : start + size] for start in range(0, len(indices), size)]
    return batches


def _rows(inputs: Any, row_text: RowText) -> list[str | float]:
    """The inputs one by one."""
    if isinstance(inputs, (str, int, float)):
        raise NumalignError(f"predict takes a list of inputs, not {inputs!r}", f"write [{inputs!r}]")
    if not hasattr(inputs, "columns"):
        return [value if isinstance(value, str) else float(value) for value in inputs]
    missing = [name for name in row_text.columns if name not in inputs.columns]
    if missing:
        found = ", ".join(map(str, inputs.columns))
        raise NumalignError(f"the table has no column `{missing[0]}`; it has {found}")
    rows: list[str | float] = []
    for index, cells in enumerate(zip(*(inputs[name] for name in row_text.columns), strict=True)):
        try:
            rows.append(row_text.fill(dict(zip(row_text.columns, cells, strict=True))))
        except NumalignError as error:
            raise NumalignError(f"row {index}: {error.message}", error.hint) from None
    return rows


def _linear(tensors: dict[str, torch.Tensor], name: str) -> torch.nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear
