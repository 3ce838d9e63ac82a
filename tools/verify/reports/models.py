"""Rows about model folders: tokens, weights, architectures. The numbers are compared with transformers'."""
import json
import os
import shutil
import struct

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, Qwen3Config, Qwen3Model

from .trial import SHORT, TESTDATA, expect, row

TEXT = "The weight is 12.345678 and no more, whatever the number of tokens may be."
IDS = [5, 17, 3, 44, 9, 60, 2]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 124439808\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
GPT2 = dict(vocab_size=96, n_embd=24, n_head=3, n_layer=2, n_positions=64)
LLAMA = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)


def reference_ids(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


def saved(trial, model, name="model"):
    """A folder of a model with random weights that are far from zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.2 + (1 if tensor.dim() == 1 else 0))
    model.eval().save_pretrained(trial / name)
    return model


def difference(trial, model, name="model", ids=IDS):
    """The largest difference of the last hidden state from transformers', relative to its largest number."""
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    got = torch.tensor(trial.hidden(name, ids))
    return float((got - wanted).abs().max() / wanted.abs().max())


def edit(path, **changes):
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            document.pop(key, None)
        else:
            document[key] = value
    path.write_text(json.dumps(document))


@row(1, "truncation stored in tokenizer.json")
def truncation(trial):
    folder = trial.copy("tokenizer")
    plain = trial.ids("model", TEXT)
    bytes_before = trial.train("before", "text", "--model-name model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(TEXT, truncation=True, max_length=8)
    tokenizer.save_pretrained(folder)
    expect(json.loads((folder / "tokenizer.json").read_text())["truncation"], "transformers stored no truncation")
    expect(trial.ids("model", TEXT) == plain == reference_ids(folder, TEXT), "other ids")
    words = trial.ok(["generate-text", "--model", "model", "--max-tokens", "4", TEXT]).out
    expect(trial.train("after", "text", "--model-name model") == bytes_before, "other bytes of the trained file")
    return f"{len(plain)} ids as AutoTokenizer, max_length 8 left out; generate-text {words.strip()[-20:]!r}; launch text: same bytes"


@row(2, "padding stored in tokenizer.json")
def padding(trial):
    folder = trial.copy("tokenizer")
    before = trial.train("before", "text", "--model-name model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer("x", padding="max_length", max_length=64)
    tokenizer.save_pretrained(folder)
    expect(json.loads((folder / "tokenizer.json").read_text())["padding"], "transformers stored no padding")
    ids = trial.ids("model", "$$12.345678&&")
    expect(ids == reference_ids(folder, "$$12.345678&&"), "other ids")
    expect(trial.train("after", "text", "--model-name model") == before, "other bytes of the trained file")
    return f"{len(ids)} ids as AutoTokenizer; launch text: same bytes"


@row(3, "GPT-2 with its own vocab.json and merges.txt, 50,257 tokens and more")
def own_vocabulary(trial):
    folder = trial / "model"
    saved(trial, GPT2LMHeadModel(GPT2Config(**GPT2 | {"vocab_size": 50257})))
    shutil.copy(TESTDATA / "tokenizers/gpt2-vocabulary/merges.txt", folder)
    vocab = json.loads((TESTDATA / "tokenizers/gpt2-vocabulary/vocab.json").read_text())
    while len(vocab) < 50257:
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    ids = trial.ids("model", TEXT)
    expect(ids == reference_ids(folder, TEXT), f"other ids: {ids}")
    os.remove(folder / "merges.txt")
    os.remove(folder / "vocab.json")
    trial.refused(["hidden", "--model", "model", "--text", TEXT], "neither tokenizer.json nor vocab.json", "hint:")
    return f"{len(ids)} ids as AutoTokenizer; without the files refused in words"


@row(6, "Git-LFS pointer instead of weights")
def pointers(trial):
    for fixture, name in [("small-f32", "model.safetensors"), ("sharded-bf16", "model-00002-of-00004.safetensors")]:
        (trial.copy(fixture, fixture) / name).write_text(POINTER)
        result = trial.refused(["hidden", "--model", fixture, "--ids", "1"], f"{name} is a Git-LFS pointer", "git lfs pull")
    return result.error


@row(7, "LFS pointer or HTML page as tokenizer.json, config.json, weights")
def pages(trial):
    for content, said in [(POINTER, "is a Git-LFS pointer"), (PAGE, "is a web page")]:
        for name in ["tokenizer.json", "config.json", "model.safetensors"]:
            (trial.copy("tokenizer") / name).write_text(content)
            result = trial.refused(["hidden", "--model", "model", "--text", "a"], f"{name} {said}", "hint:")
            trial.copy("tokenizer")
    return "6 of 6 called by name: " + result.error


@row(8, "sharded .bin, GGUF, variants, adapters, dangling links, shards without an index")
def other_weights(trial):
    cases = [(["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "PyTorch weights in shards"),
             (["pytorch_model.bin"], "only pytorch_model.bin is there"),
             (["model.gguf"], "gguf"), (["model.fp16.safetensors"], "(a variant)"),
             (["consolidated.safetensors"], "only consolidated.safetensors"),
             (["model-00001-of-00002.safetensors"], "without model.safetensors.index.json"),
             (["adapter_config.json", "adapter_model.safetensors"], "of an adapter for"), (["<link>"], "leads to nothing|dangling|link")]
    for number, (files, said) in enumerate(cases):
        folder = trial.copy("small-f32", f"case{number}")
        os.remove(folder / "model.safetensors")
        for name in files:
            (folder / name).write_text('{"base_model_name_or_path": "gpt2", "peft_type": "LORA"}')
        if files == ["<link>"]:
            os.remove(folder / "<link>")
            (folder / "model.safetensors").symlink_to("nowhere/blob")
        result = trial.refused(["hidden", "--model", folder.name, "--ids", "1"], "hint:")
        expect(any(part in result.err for part in said.split("|")), f"{files}: `{said}` is not said: {result}")
    gguf = TESTDATA / "gguf/small-f32.gguf"
    shutil.copy(gguf, trial / "case0/model.safetensors")
    trial.refused("hidden --model case0 --ids 1", "a GGUF file under another name")
    trial.ok(["hidden", "--model", gguf, "--ids", "1"])
    return f"{len(cases) + 1} of {len(cases) + 1} called by name; a .gguf path is read"


@row(9, "truncated download, empty file")
def truncated(trial):
    whole = (TESTDATA / "small-f32/model.safetensors").read_bytes()
    folder = trial.copy("small-f32")
    cuts = [0, 4, 8, 100, len(whole) // 2, len(whole) - 1]
    for cut in cuts:
        (folder / "model.safetensors").write_bytes(whole[:cut])
        result = trial.refused("hidden --model model --ids 1", "model.safetensors")
    return f"{len(cuts)} cuts refused: {result.error}"


@row(10, "1,000 bytes after the last tensor")
def trailing(trial):
    with (trial.copy("small-f32") / "model.safetensors").open("ab") as file:
        file.write(bytes(1000))
    return trial.refused("hidden --model model --ids 1", "1000 bytes follow the last tensor").error


@row(11, "a shard missing")
def missing_shard(trial):
    os.remove(trial.copy("sharded-bf16") / "model-00003-of-00004.safetensors")
    return trial.refused("hidden --model model --ids 1", "model-00003-of-00004.safetensors").error


@row(12, "indexes: stale, wrong total_size, tensor in another shard or twice, ../")
def indexes(trial):
    name = "model.safetensors.index.json"
    wanted = trial.hidden(trial.copy("sharded-bf16", "reference"), [1, 2])
    index = json.loads((trial / "reference" / name).read_text())
    for number, metadata in enumerate([{"total_size": 1}, {}]):
        edit(trial.copy("sharded-bf16", f"size{number}") / name, metadata=metadata)
        expect(trial.hidden(f"size{number}", [1, 2]) == wanted, "total_size changes the numbers")
    whole = trial.copy("small-f32", "stale")
    (whole / name).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    expect(trial.hidden("stale", [1]) == trial.hidden(trial.copy("small-f32", "whole"), [1]), "a stale index counts")
    tensor, file = next(iter(index["weight_map"].items()))
    others = sorted(set(index["weight_map"].values()) - {file})
    edit(trial.copy("sharded-bf16", "wrong") / name, weight_map=index["weight_map"] | {tensor: others[0]})
    wrong = trial.run("hidden --model wrong --ids 1,2 --json")
    expect(wrong.code == 1 and tensor in wrong.err or wrong.code == 0 and wrong.json["hidden"] == wanted, wrong)
    edit(trial.copy("sharded-bf16", "outside") / name, weight_map=index["weight_map"] | {tensor: "../whole/" + file})
    outside = trial.refused("hidden --model outside --ids 1", "../whole")
    twice = trial.copy("sharded-bf16", "twice")
    tensors = load_file(twice / others[0]) | {tensor: load_file(twice / file)[tensor]}
    save_file(tensors, twice / others[0])
    double = trial.run("hidden --model twice --ids 1,2 --json")
    expect(double.code == 1 and tensor in double.err or double.code == 0 and double.json["hidden"] == wanted, double)
    return f"sizes and a stale index: same numbers; another shard: {'read' if wrong.code == 0 else wrong.error[:90]}; " \
           f"twice: {'read' if double.code == 0 else double.error[:90]}; {outside.error[:110]}"


def agree(trial, models, bound=1e-5):
    """Every model's largest difference."""
    worst = 0.0
    for number, model in enumerate(models):
        name = f"agree{number}"
        got = difference(trial, saved(trial, model, name), name)
        expect(got <= bound, f"{model.config}: differs by {got}")
        worst = max(worst, got)
    return f"{len(models)} folders within {worst:.1e} of transformers"


@row(13, "head_dim other than hidden/heads, null")
def head_sizes(trial):
    qwen = {**LLAMA, "head_dim": 16}
    models = [LlamaModel(LlamaConfig(**LLAMA, head_dim=size)) for size in (8, 12, 16)]
    said = agree(trial, [*models, LlamaModel(LlamaConfig(**LLAMA)), Qwen3Model(Qwen3Config(**qwen))])
    edit(trial / "agree3/config.json", head_dim=None)
    expect(trial.hidden("agree3", IDS), "no numbers")
    return said + "; null is read"


@row(14, "rope_parameters new and old, both, linear, llama3; yarn, dynamic, longrope, partial_rotary_factor")
def ropes(trial):
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32, "rope_theta": 500000.0}
    linear = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
    plain = {"rope_type": "default", "rope_theta": 5000.0}
    make = lambda rope: LlamaModel(LlamaConfig(**LLAMA, rope_parameters=dict(rope)))
    said = agree(trial, [make(plain), make(linear), make(llama3)])
    # The same, as transformers 4 wrote it.
    for number, rope in enumerate([plain, linear, llama3]):
        wanted = trial.hidden(f"agree{number}", IDS)
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        edit(trial / f"agree{number}/config.json", rope_parameters=..., rope_theta=rope["rope_theta"],
             rope_scaling=None if scaling == {"rope_type": "default"} else scaling)
        expect(trial.hidden(f"agree{number}", IDS) == wanted, f"the old spelling of {rope} differs")
    edit(trial / "agree0/config.json", rope_parameters=plain | {"rope_theta": 7.0})
    both = trial.run(["hidden", "--model", "agree0", "--ids", "1,2", "--json"])
    refused = 0
    for extra in [{"rope_scaling": {"rope_type": kind, "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}}
                  for kind in ("yarn", "dynamic", "longrope")] + [{"partial_rotary_factor": 0.5}]:
        edit(trial / "agree1/config.json", rope_scaling=None, partial_rotary_factor=...)
        edit(trial / "agree1/config.json", **extra)
        kind = extra.get("rope_scaling", {}).get("rope_type", "partial_rotary_factor")
        trial.refused("hidden --model agree1 --ids 1", kind)
        refused += 1
    return f"{said}; old spellings equal to the bit; {refused} refused by name; " \
           f"both disagreeing: {'read as ' + ('new' if both.code == 0 else '') if both.code == 0 else both.error[:100]}"


@row(15, "activations named in config")
def activations(trial):
    names = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "tanh"]
    models = [GPT2Model(GPT2Config(**GPT2, activation_function=name)) for name in names]
    models += [LlamaModel(LlamaConfig(**LLAMA, hidden_act="gelu"))]
    tried, refused = [], []
    for number, model in enumerate(models):
        name = f"act{number}"
        saved(trial, model, name)
        result = trial.run(f"hidden --model {name} --ids 1 --json")
        if result.code == 0:
            worst = difference(trial, model, name)
            expect(worst <= 1e-5, f"{model.config}: {worst}")
            tried.append(worst)
        else:
            expect("activation" in result.err or "hidden_act" in result.err, result)
            refused.append(name)
    return f"{len(tried)} within {max(tried):.1e}, {len(refused)} refused by name"


@row(16, "no lm_head, tied or not, prefixes, attn.bias, masked_bias, rotary inv_freq; words of generate-text")
def prefixes(trial):
    gpt2 = saved(trial, GPT2LMHeadModel(GPT2Config(**GPT2)), "tied")
    untied = saved(trial, LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)), "untied")
    worst = max(difference(trial, gpt2, "tied"), difference(trial, untied, "untied"))
    wanted = trial.hidden("tied", IDS)
    weights = trial / "tied/model.safetensors"
    tensors = load_file(weights)
    expect(any(name.startswith("transformer.") for name in tensors), list(tensors))
    more = {f"transformer.h.{block}.attn.{name}": value for block in range(2) for name, value in
            [("bias", torch.ones(1, 1, 64, 64).tril()), ("masked_bias", torch.tensor(-1e4))]}
    save_file(tensors | more | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}, weights)
    expect(trial.hidden("tied", IDS) == wanted, "attn.bias changes the numbers")
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, weights)
    expect(trial.hidden("tied", IDS) == wanted, "without the prefix the numbers differ")
    wanted = trial.hidden("untied", IDS)
    weights = trial / "untied/model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {f"model.layers.{block}.self_attn.rotary_emb.inv_freq": torch.ones(4) for block in range(2)}, weights)
    expect(trial.hidden("untied", IDS) == wanted, "inv_freq changes the numbers")
    save_file({name: value for name, value in tensors.items() if name != "lm_head.weight"}, weights)
    expect(trial.hidden("untied", IDS) == wanted, "without lm_head the numbers differ")
    folder = trial.copy("tokenizer")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt in ["The capital of France is", "12.5 and", "One two three"]:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        new = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
        got = trial.ok(["generate-text", "--model", "model", "--max-tokens", "8", prompt, "--json"]).json["ids"]
        expect(got[-len(new):] == new.tolist(), (got, new))
    return f"within {worst:.1e}; 5 ways of saving: same bits; same words in 3 of 3 prompts"


@row(17, "extra heads, LoRA leftovers")
def heads(trial):
    folder = trial.copy("small-f32")
    wanted = trial.hidden("model", [1, 2])
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.weight": torch.ones(2, 30), "v_head.summary.weight": torch.ones(1, 30),
                         "v_head.summary.bias": torch.ones(1)}, folder / "model.safetensors")
    expect(trial.hidden("model", [1, 2]) == wanted, "the heads change the numbers")
    told = trial.ok(f"launch nn --model-name model {SHORT}")
    expect("v_head.summary.bias" in told.err and "score.weight" in told.err, told)
    save_file(tensors | {"h.0.attn.c_attn.lora_A.default.weight": torch.ones(4, 30)}, folder / "model.safetensors")
    lora = trial.refused("hidden --model model --ids 1", "lora_A", "hint:")
    return f"heads: same bits, named in the log of launch; {lora.error}"


@row(18, "families and settings that are not computed")
def families(trial):
    names = ["gpt_neo", "gpt_neox", "opt", "phi", "phi3", "gemma", "gemma2", "smollm3", "granite", "stablelm", "mixtral"]
    folder = trial.copy("small-f32")
    for name in names:
        edit(folder / "config.json", model_type=name)
        trial.refused("hidden --model model --ids 1", f"`{name}`", "hint:")
    edit(folder / "config.json", model_type=...)
    none = trial.run("hidden --model model --ids 1")
    expect(none.code == 1 and "model_type" in none.err or none.code == 0, none)
    edit(folder / "config.json", model_type="gpt2", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    trial.refused("hidden --model model --ids 1", "quantization_config", "hint:")
    edit(folder / "config.json", quantization_config=...)
    tensors = load_file(folder / "model.safetensors")
    for kind, name in [(torch.float64, "F64"), (torch.float8_e4m3fn, "F8")]:
        save_file({key: value.to(kind) for key, value in tensors.items()}, folder / "model.safetensors")
        trial.refused("hidden --model model --ids 1", name)
    window = trial.copy("mistral-window", "window")
    limit = json.loads((window / "config.json").read_text())["sliding_window"]
    long = trial.run(["hidden", "--model", "window", "--ids", ",".join(["1"] * (limit + 2))])
    expect(long.code == 1 and "sliding window" in long.err, long)
    return f"{len(names)} families, quantization_config, f64, fp8 refused by name; {long.error[:160]}"


@row(33, "NaN in the weights")
def not_finite(trial):
    folder = trial.copy("small-f32")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = 8 + struct.unpack("<Q", data[:8])[0]
    start = json.loads(data[8:length])["h.1.attn.c_attn.weight"]["data_offsets"][0]
    for value, said in [(float("nan"), "NaN"), (float("inf"), "inf")]:
        data[length + start:length + start + 4] = struct.pack("<f", value)
        path.write_bytes(data)
        for line in ["hidden --model model --ids 1", f"launch nn --model-name model --run-id {said}"]:
            result = trial.refused(line, f"tensor h.1.attn.c_attn.weight holds {said} at index [0, 0]")
            expect("lr" not in result.err.replace("already", ""), f"it still speaks of lr: {result}")
    told = result.err.count("holds inf")
    expect(told == 1, f"told {told} times: {result}")
    return f"hidden and launch name tensor and index, launch once: {result.error[:140]}"
