"""What a tokenizer puts around a text, and its fingerprint, as ``crates/model/src/tokenizer`` has them."""

from __future__ import annotations

import json
from typing import Any

from blake3 import blake3

#: The fingerprint of GPT-2's vocabulary that is compiled into the program; ``transformers`` has it in files.
COMPILED_IN = blake3(b'"r50k_base"', derive_key_context="numalign 2026-11 tokenizer").hexdigest()


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the special tokens before and behind a text: what ``add_special_tokens=True`` adds."""
    encoded = tokenizer("a", add_special_tokens=True, return_special_tokens_mask=True)
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    if 0 not in special:
        return [], []
    last = len(special) - special[::-1].index(0)
    return ids[: special.index(0)], ids[last:]


def fingerprint(tokenizer: Any, add_special_tokens: bool) -> str | None:
    """The tokenizer's fingerprint, in hex; None of one that is not of the ``tokenizers`` library.

    BLAKE3 over what determines token ids, in a canonical form: a file that was saved again has the same one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    document = json.loads(backend.to_str())
    added = sorted(document["added_tokens"], key=lambda token: int(token["id"]))
    pre_tokenizer, normalizer = document["pre_tokenizer"], document["normalizer"]
    splits_special = bool(backend.encode_special_tokens)
    model = document["model"]
    if isinstance(model.get("vocab"), dict):
        # Whether a file has them in its vocabulary too changes no id.
        model["vocab"].update({token["content"]: int(token["id"]) for token in added})
    canonical = {
        "model": _model(model, pre_tokenizer),
        "normalizer": _steps(document["normalizer"], "normalizers"),
        "pre_tokenizer": _steps(pre_tokenizer, "pretokenizers"),
        "added_tokens": [
            [
                *(token[field] for field in ("id", "content", "single_word", "lstrip", "rstrip")),
                token["normalized"] and normalizer is not None,
                token["special"] and splits_special,
            ]
            for token in added
        ],
        "split_special_tokens": splits_special,
        "around": list(around(tokenizer)) if add_special_tokens else None,
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return blake3(text.encode(), derive_key_context="numalign 2026-11 tokenizer").hexdigest()


def _model(model: dict[str, Any], pre_tokenizer: Any) -> dict[str, Any]:
    if model.get("type") != "BPE":
        return {key: value for key, value in model.items() if value is not None}
    model = {key: value for key, value in model.items() if key != "dropout"}
    model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    is_byte_level = any(step["type"] == "ByteLevel" for step in _steps(pre_tokenizer, "pretokenizers"))
    if is_byte_level and all(character in model["vocab"] for character in _alphabet()):
        # Every byte has its token, so that nothing is unknown.
        for name in ("unk_token", "fuse_unk", "byte_fallback"):
            model.pop(name, None)
    return {key: value for key, value in model.items() if value not in (None, False, "")}


def _steps(step: Any, name: str) -> list[Any]:
    """The steps of a normaliser or pre-tokenizer one after the other, without what concerns offsets only."""
    if step is None:
        return []
    if step["type"] == "Sequence" and isinstance(step.get(name), list):
        return [one for inner in step[name] for one in _steps(inner, name)]
    return [{key: value for key, value in step.items() if key != "trim_offsets"}]


def _alphabet() -> list[str]:
    """The printable characters that stand for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())
