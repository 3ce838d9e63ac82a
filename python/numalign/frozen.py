"""The frozen model: found, loaded with ``transformers``, and read after any block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from .errors import NumalignError
from .fingerprint import LLAMA_STYLE, fingerprint
from .tokenizer import around

#: The files of the model that the binary calls ``demo``.
DEMO = Path(__file__).parent / "demo"

#: A place where hidden states are read: after the first k blocks (0: the embeddings), or after the final norm (None).
Place = int | None


class _Enough(Exception):
    """Every place was read; the blocks that follow need not run."""


class FrozenModel:
    """A decoder of ``transformers`` that is never changed, and its tokenizer.

    Args:
        model: A model with or without its head.
        tokenizer: Its tokenizer; stage ``nn`` needs none.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if family != "gpt2" and family not in LLAMA_STYLE:
            known = ", ".join(("gpt2", *LLAMA_STYLE))
            raise NumalignError(f"model_type `{family}` is not known; known: {known}")
        self.backbone: torch.nn.Module = model.base_model
        self.tokenizer = tokenizer
        #: Whether it was read from a GGUF file.
        self.is_gguf = False
        #: What it was loaded from, where it was loaded here.
        self._source: str | None = None
        if family == "gpt2":
            self._blocks, self._norm = self.backbone.h, self.backbone.ln_f
        else:
            self._blocks, self._norm = self.backbone.layers, self.backbone.norm
        self._embeddings: Any = self.backbone.get_input_embeddings()

    @classmethod
    def load(cls, name: str, dtype: str = "f32", device: str | torch.device = "cpu") -> FrozenModel:
        """The model that ``model_name`` means: ``demo``, a folder, a ``.gguf`` file or a hub id.

        Arithmetic is float32; ``dtype`` is how the weights were held during training.

        Raises:
            NumalignError: There is no such model, or only the binary has it.
        """
        if name.startswith("synthetic:"):
            raise NumalignError(
                f"{name} has random weights that only the binary makes", "use `numalign predict` for this checkpoint"
            )
        source, options = _source(name)
        with _silence():
            try:
                model = AutoModel.from_pretrained(source, dtype=torch.float32, **options)
            except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
                raise NumalignError(f"the model {name} cannot be loaded: {error}") from error
            try:
                tokenizer = AutoTokenizer.from_pretrained(source, **options)
            except Exception:  # A folder without one serves stage nn; what is missing is told when a text comes.
                tokenizer = None
        frozen = cls(model.eval().requires_grad_(False), tokenizer)
        frozen.is_gguf, frozen._source = "gguf_file" in options, source
        frozen.fingerprint()
        frozen._round(dtype)
        frozen.backbone.to(device)
        return frozen

    def fingerprint(self) -> str:
        """The base fingerprint, in hex; computed once."""
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = fingerprint(self.backbone)
        return self._fingerprint

    @property
    def hidden_size(self) -> int:
        """Width ``d`` of embeddings and hidden states."""
        return int(self._embeddings.weight.shape[1])

    @property
    def layers(self) -> int:
        """Blocks of the stack."""
        return len(self._blocks)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        device: torch.device = self._embeddings.weight.device
        return device

    @property
    def max_positions(self) -> int:
        """Longest sequence: where attention has a sliding window, its width."""
        config: Any = self.backbone.config
        positions = int(config.max_position_embeddings)
        window = _sliding_window(config)
        return positions if window is None else min(positions, window)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens.

        Raises:
            NumalignError: The model has no tokenizer.
        """
        return list(self._need_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"])

    def special_tokens(self) -> tuple[list[int], list[int]]:
        """Ids of the special tokens that the tokenizer puts before and behind a text.

        Raises:
            NumalignError: The model has no tokenizer.
        """
        return around(self._need_tokenizer())

    def plain_tokenizer(self) -> Any:
        """The tokenizer as its ``tokenizer.json`` has it, without what ``transformers`` changes in it for its family.

        None where there is no such file, or where the model was not loaded here.
        """
        if self._source is None or self.is_gguf:
            return None
        try:
            return PreTrainedTokenizerFast.from_pretrained(self._source)
        except Exception:  # No such file, or not one of the tokenizers library.
            return None

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise NumalignError(
                "the model has no tokenizer",
                "put its tokenizer.json into the folder, or give one: attach(model, tokenizer)",
            )
        return self.tokenizer

    def embed_tokens(self, ids: Sequence[int]) -> torch.Tensor:
        """Rows of the token table, ``[ids, d]``."""
        rows: torch.Tensor = self._embeddings(torch.tensor(list(ids), dtype=torch.long, device=self.device))
        return rows

    def hidden(
        self, embeddings: torch.Tensor, places: Sequence[Place], norms: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Hidden states of input embeddings ``[b, t, d]`` at each of ``places``, ``[b, t, d]`` float32 each.

        ``norms`` stand in for the model's own layer norms during this call.

        Raises:
            NumalignError: A block that the model does not have.
        """
        for place in places:
            if place is not None and not 0 <= place <= self.layers:
                raise NumalignError(f"layer {place} does not exist: the model has {self.layers} blocks")
        read: dict[Place, torch.Tensor] = {}
        last = None if None in places else max(place for place in places if place is not None)

        def note(place: Place, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            read[place] = states.float()
            if place == last:
                raise _Enough

        hooks = []
        for place in set(places):
            if place is None:
                hook = self._norm.register_forward_hook(lambda _m, _i, output: note(None, output))
            elif place == 0:
                hook = self._blocks[0].register_forward_pre_hook(
                    lambda _m, args, kwargs: note(0, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
                )
            else:
                hook = self._blocks[place - 1].register_forward_hook(
                    lambda _m, _i, output, place=place: note(place, output)
                )
            hooks.append(hook)
        call = {"inputs_embeds": embeddings.to(self._embeddings.weight.dtype), "use_cache": False}
        try:
            torch.func.functional_call(self.backbone, dict(norms), (), call)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return [read[place] for place in places]

    def _round(self, dtype: str) -> None:
        """Rounds weights and tables to what ``dtype`` holds of them, as the binary does; biases and norms stay."""
        types = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}
        if dtype not in types:
            raise NumalignError(
                f"dtype {dtype} is not known to this package; known: {', '.join(types)}",
                "use `numalign predict` for this checkpoint",
            )
        kind = types[dtype]
        if kind is None:
            return
        norms = {id(module) for name, module in self.backbone.named_modules() if "norm" in name or "ln_" in name}
        with torch.no_grad():
            for module in self.backbone.modules():
                weight = getattr(module, "weight", None)
                if isinstance(weight, torch.Tensor) and id(module) not in norms:
                    weight.copy_(weight.to(kind).to(weight.dtype))


def _source(name: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` is given for a ``model_name``."""
    if name == "demo":
        if not DEMO.is_dir():
            raise NumalignError("the demo model's files are not installed", "install the package again: pip install .")
        return str(DEMO), {}
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NumalignError(f"there is no file {path}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").exists():
            files = list(path.glob("*.gguf"))
            if len(files) == 1:
                return str(path), {"gguf_file": files[0].name}
            raise NumalignError(f"{path} has no config.json", "give a folder in Hugging Face layout or a .gguf file")
        return str(path), {}
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise NumalignError(f"there is no folder {name}", "say where the model lies with model=")
    return name, {}


@contextmanager
def _silence() -> Iterator[None]:
    """No bars and no reports of heads that are passed over, while a model is loaded."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _sliding_window(config: Any) -> int | None:
    """Width of the sliding window, where some block has one."""
    window: int | None = None
    if config.model_type == "mistral":
        window = config.sliding_window
    elif config.model_type in ("qwen2", "qwen3") and config.use_sliding_window:
        window = config.sliding_window if "sliding_attention" in (config.layer_types or []) else None
    return window
