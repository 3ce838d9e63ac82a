"""The base fingerprint of a frozen model: BLAKE3 over its arithmetic and its weights, as ``numalign`` computes it.

A projector fits one frozen model only. The text that describes the arithmetic is that of ``Gpt2Config::canonical`` and
``LlamaConfig::canonical`` in ``crates/model/src/arch``; the tensors follow in the order of ``tensors()`` there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from .errors import NumalignError

_ACTIVATIONS = {
    "gelu": "GeluErf",
    "gelu_new": "GeluTanh",
    "gelu_fast": "GeluTanh",
    "gelu_pytorch_tanh": "GeluTanh",
    "quick_gelu": "QuickGelu",
    "relu": "Relu",
    "silu": "Silu",
    "swish": "Silu",
    "tanh": "Tanh",
}

#: ``model_type`` of the Llama-style families.
LLAMA_STYLE = ("llama", "mistral", "qwen2", "qwen3")


def fingerprint(backbone: torch.nn.Module) -> str:
    """The fingerprint, in hex, of a ``transformers`` model without its head.

    Raises:
        NumalignError: A family or an arithmetic that numalign does not compute.
    """
    config: Any = backbone.config
    if config.model_type == "gpt2":
        canonical, names = _gpt2(config)
    elif config.model_type in LLAMA_STYLE:
        canonical, names = _llama_style(config)
    else:
        known = ", ".join(("gpt2", *LLAMA_STYLE))
        raise NumalignError(f"model_type `{config.model_type}` is not known; known: {known}")
    state = backbone.state_dict()
    hasher = blake3(canonical.encode(), derive_key_context="numalign 2026-11 base fingerprint", max_threads=blake3.AUTO)
    for name in names:
        # A bias that the configuration promises or not shows in the tensors.
        if name not in state:
            if name.endswith(".bias"):
                continue
            raise NumalignError(f"the model has no tensor {name}")
        values = state[name].detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        hasher.update(name.encode())
        hasher.update(values.size.to_bytes(8, "little"))
        hasher.update(values.reshape(-1).view(np.uint8))
    return hasher.hexdigest()


def _gpt2(config: Any) -> tuple[str, Iterator[str]]:
    fields = {
        "architecture": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.n_inner or 4 * config.n_embd,
        "layer_norm_epsilon": None,
        "activation": _activation(config.activation_function),
        "scale_attn_weights": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }
    text = json.dumps(fields, separators=(",", ":"))
    epsilon = _json_float(float(np.float32(config.layer_norm_epsilon)))
    return text.replace('"layer_norm_epsilon":null', f'"layer_norm_epsilon":{epsilon}'), _gpt2_names(config.n_layer)


def _gpt2_names(layers: int) -> Iterator[str]:
    yield from ("wte.weight", "wpe.weight")
    for layer in range(layers):
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            yield f"h.{layer}.{part}.weight"
            yield f"h.{layer}.{part}.bias"
    yield from ("ln_f.weight", "ln_f.bias")


def _llama_style(config: Any) -> tuple[str, Iterator[str]]:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    text = (
        f"llama-style: vocabulary {config.vocab_size} hidden {config.hidden_size} inner {config.intermediate_size} "
        f"layers {config.num_hidden_layers} heads {heads} kv_heads {kv_heads} head_size {head_size} "
        f"eps {_debug_float(np.float32(config.rms_norm_eps))} activation {_activation(config.hidden_act)} "
        f"rope {_rope(config)} head_norms {'true' if config.model_type == 'qwen3' else 'false'}"
    )
    return text, _llama_style_names(config.num_hidden_layers, config.model_type == "qwen3")


def _llama_style_names(layers: int, head_norms: bool) -> Iterator[str]:
    yield "embed_tokens.weight"
    for layer in range(layers):
        parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        parts += ["self_attn.q_norm", "self_attn.k_norm"] if head_norms else []
        parts += ["self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        yield f"layers.{layer}.input_layernorm.weight"
        for part in parts:
            yield f"layers.{layer}.{part}.weight"
            yield f"layers.{layer}.{part}.bias"
    yield "norm.weight"


def _rope(config: Any) -> str:
    """Rotary positions as Rust's ``{:?}`` writes them."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = _debug_float(float(given.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0))
    kind = given.get("rope_type", given.get("type", "default"))

    def number(name: str) -> str:
        return _debug_float(float(given[name]))

    if kind == "default":
        scaling = "None"
    elif kind == "linear":
        scaling = f"Linear {{ factor: {number('factor')} }}"
    elif kind == "llama3":
        positions = given.get("original_max_position_embeddings") or config.max_position_embeddings
        scaling = (
            f"Llama3 {{ factor: {number('factor')}, low_freq_factor: {number('low_freq_factor')}, "
            f"high_freq_factor: {number('high_freq_factor')}, original_positions: {positions} }}"
        )
    else:
        raise NumalignError(f"rope_type `{kind}` is not known; known: default, linear, llama3")
    return f"Rope {{ theta: {theta}, scaling: {scaling} }}"


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise NumalignError(f"activation `{name}` is not known; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _debug_float(value: float | np.float32) -> str:
    """The fewest digits, as Rust's ``{:?}`` writes them: an exponent below 1e-4 and from 1e16 on."""
    if value != 0 and not 1e-4 <= abs(float(value)) < 1e16:
        digits, exponent = np.format_float_scientific(value, trim="-").split("e")
        return f"{digits}e{int(exponent)}"
    return np.format_float_positional(value, trim="0")


def _json_float(value: float) -> str:
    """The fewest digits, as ``serde_json`` writes them: an exponent below 1e-5 and from 1e16 on."""
    if 1e-5 <= abs(value) < 1e-4:
        return np.format_float_positional(value, trim="0")
    return _debug_float(value)
