"""25 further public reports of neighbouring tools, by the report's own name."""
import json
import os
import shutil
import subprocess

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from .models import IDS, LLAMA, TEXT, difference, edit, reference_ids, saved
from .trial import TESTDATA, Skipped, expect, row

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(trial, refs=("main",), ref=COMMIT, snapshot=COMMIT, fixture="small-f32"):
    """A hub cache with a model `me/tiny`, and the environment that names it."""
    base = trial / "hub/models--me--tiny"
    shutil.copytree(TESTDATA / fixture, base / "snapshots" / snapshot, dirs_exist_ok=True)
    for name in refs:
        path = base / "refs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ref)
    return {"HF_HUB_CACHE": str(trial / "hub")}


def read(trial, model, env, fixture="small-f32"):
    """The model is read as its folder is."""
    wanted = trial.hidden(trial.copy(fixture, "whole"), [1, 2])
    got = trial.ok(f"hidden --model {model} --ids 1,2 --json", env=env).json["hidden"]
    expect(got == wanted, f"{model}: other numbers")
    return "read, same numbers"


@row("MiaAI-Lab/Qwen3.8-Flash-Next-Dual-DGX-Sparks#36", "refs/main ends with a newline")
def newline(trial):
    return read(trial, "me/tiny", cached(trial, ref=COMMIT + "\n"))


@row("huggingface/huggingface_hub#1306", "a snapshot fetched by its commit, without refs")
def by_commit(trial):
    return read(trial, f"me/tiny@{COMMIT}", cached(trial, refs=()))


@row("huggingface/huggingface_hub#1307", "offline and no refs")
def no_refs(trial):
    return trial.refused("hidden --model me/tiny --ids 1", "hint:", env=cached(trial, refs=())).error[:200]


@row("huggingface/huggingface_hub#4487", "in the cache, and the hub cannot be reached")
def unreachable(trial):
    dead = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    return read(trial, "me/tiny", cached(trial) | dead) + "; offline too: " + read(trial, "me/tiny", cached(trial))


@row("openshift/lightspeed-service#2961", "a cache made by hand: ref `local`, absolute links, no blobs")
def by_hand(trial):
    env = cached(trial, ref="local\n", snapshot="local")
    folder = trial / "hub/models--me--tiny/snapshots/local"
    for file in list(folder.iterdir()):
        os.rename(file, trial / file.name)
        file.symlink_to(trial / file.name)
    return read(trial, "me/tiny", env)


@row("huggingface/huggingface_hub#2797", "a cache that may only be read")
def read_only(trial):
    env = cached(trial)
    hub = trial / "hub"
    if subprocess.run(["mount", "--bind", hub, hub], capture_output=True).returncode != 0:
        raise Skipped("a bind mount needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", hub], check=True)
        return read(trial, "me/tiny", env)
    finally:
        subprocess.run(["umount", "-l", hub], check=True)


@row("vllm-project/vllm#1131", "the cache's own folder of a model as the model")
def cache_folder(trial):
    cached(trial)
    return trial.refused("hidden --model hub/models--me--tiny --ids 1", "snapshots", "hint:").error[:200]


@row("huggingface/text-embeddings-inference#105", "revision refs/pr/4")
def pull_request(trial):
    return read(trial, "me/tiny@refs/pr/4", cached(trial, refs=("refs/pr/4",)))


@row("huggingface/text-embeddings-inference#122", "another revision than main")
def revision(trial):
    env = cached(trial, refs=("v1.0",))
    trial.refused("hidden --model me/tiny@v2.0 --ids 1", "v2.0", "hint:", env=env)
    return read(trial, "me/tiny@v1.0", env) + "; an absent one is named"


def vocabulary(trial):
    """A GPT-2 folder that has vocab.json and merges.txt alone."""
    folder = trial.copy("tokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TESTDATA / "tokenizers/gpt2-vocabulary" / name, folder)
    return folder


@row("ggml-org/llama.cpp#3732", "vocab.json without merges")
def no_merges(trial):
    (vocabulary(trial) / "merges.txt").unlink()
    return trial.refused("hidden --model model --text a", "merges.txt", "hint:").error[:200]


@row("huggingface/tokenizers#218", "merges.txt invalid at line 1")
def bad_merges(trial):
    (vocabulary(trial) / "merges.txt").write_text('{"a": 1}\n')
    return trial.refused("hidden --model model --text a", "merges.txt", "line 1", "hint:").error[:200]


def changed(trial, change):
    """The folder `model` with a changed tokenizer.json."""
    folder = trial.copy("tokenizer")
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


@row("huggingface/tokenizers#566", "merges whose tokens hold blanks")
def blanks(trial):
    def change(document):
        pair = document["model"]["merges"][0]
        document["model"]["merges"][0] = (pair if isinstance(pair, str) else " ".join(pair)).replace(" ", "  ")
        document["model"]["merges"][1:] = [pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"][1:]]
    changed(trial, change)
    return trial.refused("hidden --model model --text a", "tokenizer.json", "hint:").error[:200]


@row("robertknight/rten#453", "ignore_merges: a token of the vocabulary that no merge makes")
def ignore_merges(trial):
    def change(document):
        vocab = document["model"]["vocab"]
        last = max(vocab, key=vocab.get)
        vocab["weightless"] = vocab.pop(last)
        document["model"]["merges"] = [pair for pair in document["model"]["merges"]
                                       if "".join(pair if isinstance(pair, list) else pair.split(" ")) != last]
        document["model"]["ignore_merges"] = True
    folder = changed(trial, change)
    ids = trial.ids("model", "weightless 12.5")
    expect(ids == AutoTokenizer.from_pretrained(folder)("weightless 12.5", add_special_tokens=False)["input_ids"], ids)
    return f"ids as AutoTokenizer's: {ids}"


@row("huggingface/tokenizers#644", "dropout stored in tokenizer.json")
def dropout(trial):
    wanted = trial.ids(trial.copy("tokenizer", "plain"), TEXT)
    changed(trial, lambda document: document["model"].update(dropout=0.9))
    expect(all(trial.ids("model", TEXT) == wanted for _ in range(5)), "merges are dropped")
    return "5 of 5 times the ids without it"


@row("deepseek-ai/DeepSeek-R1#151", "a text that begins with BOS, and a tokenizer that adds it")
def doubled_bos(trial):
    source = TESTDATA / "tokenizers/llama-bos"
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    saved(trial, LlamaModel(LlamaConfig(**LLAMA | {"vocab_size": size})))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, trial / "model")
    ids = trial.ids("model", "<s>12.5")
    expect(ids == reference_ids(trial / "model", "<s>12.5") and ids.count(ids[0]) == 1, ids)
    return f"once, as AutoTokenizer without special tokens: {ids}"


@row("huggingface/tokenizers#1609", "a byte without a token: a text that comes to nothing")
def no_token(trial):
    def change(document):
        del document["model"]["vocab"]["~"]
        document["model"]["merges"] = [pair for pair in document["model"]["merges"] if "~" not in "".join(pair)]
    changed(trial, change)
    trial.write("rows.jsonl", "\n".join(json.dumps({"input": "~~" if i == 17 else f"a {i}", "output": i}) for i in range(40)))
    result = trial.refused("launch text --model-name model --dataset.file rows.jsonl --run-id a", "18", "hint:")
    expect(trial.newest("a") == 0, "it trained")
    return "before step 0: " + result.error[:200]


def with_weights(trial, name):
    tensors = load_file(trial.copy("small-f32") / "model.safetensors")
    save_file({name(key): value for key, value in tensors.items()}, trial / "model/model.safetensors")


@row("karpathy/nanoGPT#325", "weights under _orig_mod.")
def compiled(trial):
    with_weights(trial, lambda key: "_orig_mod." + key)
    return trial.refused("hidden --model model --ids 1", "_orig_mod.", "hint:").error[-200:]


@row("huggingface/pytorch-image-models#2003", "weights under module. of a wrapper")
def wrapped(trial):
    with_weights(trial, lambda key: "module." + key)
    return trial.refused("hidden --model model --ids 1", "module.", "hint:").error[-200:]


@row("safetensors/safetensors#668", "a header of 126 MB")
def large_header(trial):
    path = trial.copy("small-f32") / "model.safetensors"
    path.write_bytes((132_095_296).to_bytes(8, "little") + b'{"a": ')
    os.truncate(path, 140_000_000)
    return trial.refused("hidden --model model --ids 1", "header", "hint:").error[:200]


@row("kohya-ss/sd-scripts#990", "a .ckpt under the name of the weights: HeaderTooLarge")
def checkpoint(trial):
    torch.save({"weight": torch.ones(3)}, trial.copy("small-f32") / "model.safetensors")
    return trial.refused("hidden --model model --ids 1", "a PyTorch file", "hint:").error[:200]


@row("paiml/aprender#268", "Infinity in config.json")
def infinity(trial):
    folder = trial.copy("small-f32")
    wanted = trial.hidden("model", [1])
    edit(folder / "config.json", time_step_limit=[0.0, float("inf")])
    expect("Infinity" in (folder / "config.json").read_text() and trial.hidden("model", [1]) == wanted, "other numbers")
    return "read, as Python reads it"


def defaulted(trial, key, config):
    """A folder without a setting that transformers has a default for."""
    model = saved(trial, LlamaModel(config))
    edit(trial / "model/config.json", **{key: ...})
    worst = difference(trial, model)
    expect(worst < 1e-5, f"differs by {worst}")
    return f"transformers' default, within {worst:.1e}: {len(IDS)} tokens"


@row("meta-pytorch/torchtune#946", "config.json without num_key_value_heads")
def no_groups(trial):
    return defaulted(trial, "num_key_value_heads", LlamaConfig(**LLAMA | {"num_key_value_heads": 4}))


@row("ollama/ollama#4348", "config.json without rms_norm_eps")
def no_epsilon(trial):
    return defaulted(trial, "rms_norm_eps", LlamaConfig(**LLAMA))


@row("s-JoL/Open-Llama#17 and SALT-NLP/LLaVAR#14", "model_type open-llama, llava")
def unknown_types(trial):
    for name in ("open-llama", "llava"):
        edit(trial.copy("small-f32") / "config.json", model_type=name)
        result = trial.refused("hidden --model model --ids 1", f"`{name}`", "hint:")
    return result.error[:200]
