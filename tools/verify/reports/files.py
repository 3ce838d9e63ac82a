"""Rows about YAML, data files, checkpoints from elsewhere, and the hub's cache."""
import hashlib
import json
import shutil

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from .trial import SHORT, TESTDATA, expect, row


def shown(trial, text):
    """What `config show` makes of a file, or the refusal."""
    trial.write("run.yaml", text)
    result = trial.run("config show run.yaml")
    return yaml.safe_load(result.out) if result.code == 0 else result


@row(19, "1e-3, 1E-3, \"1e-3\", .01 in YAML")
def numbers(trial):
    spellings = {"1e-3": 0.001, "1E-3": 0.001, '"1e-3"': 0.001, ".01": 0.01, "+0.5": 0.5, "1.": 1.0, "5e-05": 5e-5}
    for text, value in spellings.items():
        found = shown(trial, f"stage: nn\nlr: {text}\n")
        expect(isinstance(found, dict) and float(found["lr"]) == value, f"{text}: {found}")
    return f"{len(spellings)} of {len(spellings)} read as people mean them"


@row(20, "YAML with a byte-order mark and two keys")
def marks(trial):
    for text in ["\ufeffstage: nn\nseed: 7\n", "\ufeff# a comment\nstage: nn\nseed: 7\n", "\ufeff---\nstage: nn\nseed: 7\n"]:
        found = shown(trial, text)
        expect(isinstance(found, dict) and found["seed"] == 7, found)
    return "read, as PyYAML does"


@row(21, "YAML: words for booleans, octal, tabs, doubles, anchors, merge keys, dates, commas, alias bombs")
def yaml_files(trial):
    read = {"stage: nn\nresume: auto\n": None, "stage: nn\nseed: 0x10\n": ("seed", 16), "stage: nn\nmin_val: -1\n": ("min_val", -1),
            "stage: nn\nbatch_size: 16\nmicro_batch_size: 4\n": ("batch_size", 16), "---\nstage: nn\n": None, "stage: nn\n...\n": None,
            "{stage: nn, seed: 3}\n": ("seed", 3), "stage: 'nn'\r\nseed: 4\r\n": ("seed", 4), "stage: nn # words\n": None,
            "x-base: &base\n  seed: 5\nstage: nn\n<<: *base\n": ("seed", 5), "x-seed: &n 6\nstage: nn\nseed: *n\n": ("seed", 6),
            "stage: nn\nshl: true\n": ("shl", True), "stage: mixed\nmixed_tasks: [min, max]\n": ("mixed_tasks", ["min", "max"]),
            "stage: nn\nnum_epochs: 20.0\n": None, "stage: nn\nshl: yes\n": None, "stage: nn\nseed: 010\n": None,
            "stage: nn\nlr:\n": ("lr", 0.003)}
    refused = ["stage: nn\n\tseed: 1\n", "stage: nn\nseed: 1\nseed: 2\n", "stage: nn\nlr: 0,001\n", "stage: nn\nnum_epochs: 2024-01-01\n",
               "stage: nn\nseed: -1\n", "stage: nn\nlr: .nan\n", "stage: nn\nlr: -.inf\n", "stage: nn\nbatch_siz: 3\n", "- stage: nn\n",
               "stage: nn\nlr: [1]\n", "stage: [nn\n", "stage: nn\nlr: 1e-3 # x\n lr2: 1\n", "stage: nn\n---\nseed: 1\n",
               "stage: nn\nseed: 1.5\n", "stage: nn\nlr: abc\n", "stage: nn\n<<: 5\n", "stage: nn\nseed: 99999999999999999999999\n",
               "stage: *gone\n", "? [stage]\n: nn\n", "stage: !!python/object:os.system x\n",
               "x-a: &a [1,1,1,1,1,1,1,1,1]\nx-b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nx-c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
               "x-d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\nx-e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nx-f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
               "x-g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nx-h: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\nseed: *h\n"]
    told = 0
    for text, wanted in read.items():
        found = shown(trial, text)
        if isinstance(found, dict):
            expect(wanted is None or found[wanted[0]] == wanted[1], f"{text!r}: {found}")
        else:
            expect(wanted is None and found.code == 2 and ("hint:" in found.err or "line" in found.err), f"{text!r}: {found}")
            told += 1
    for text in refused:
        found = shown(trial, text)
        expect(not isinstance(found, dict), f"{text!r} is read: {found}")
        expect(found.code == 2 and "error:" in found.err and "hint:" in found.err, f"{text!r}: {found}")
    return f"{len(read) - told} read as they stand (merge keys and anchors too), {told + len(refused)} refused with place or hint"


def lines(count=40):
    return [json.dumps({"input": f"The weight is {i}.{i % 10} kg", "output": i + i % 10 / 10}) for i in range(count)]


@row(22, "JSONL: BOM, CRLF, NaN, 1e400, huge numbers, doubles, blank lines, arrays, UTF-16, Latin-1, gz, pipes")
def jsonl(trial):
    plain = lines()
    train = lambda name: trial.run(f"launch text --dataset.file {name} --run-id {name.replace('.', '-')} {SHORT} --model-name demo")
    good = {"plain": "\n".join(plain) + "\n", "bom": "\ufeff" + "\n".join(plain) + "\n", "crlf": "\r\n".join(plain) + "\r\n",
            "noend": "\n".join(plain), "blank": "\n".join(plain) + "\n\n\n"}
    files = set()
    for name, text in good.items():
        trial.write(f"{name}.jsonl", text)
        result = train(f"{name}.jsonl")
        expect(result.code == 0, f"{name}: {result}")
        with safe_open(trial / f"chk/{name}-jsonl.safetensors", "pt") as file:
            files.add(tuple(file.get_tensor("output_projection.weight").flatten().tolist()))
    expect(len(files) == 1, "other bytes of the same rows")
    bad = {"nan": '{"input": "a 1", "output": NaN}', "huge": '{"input": "a 1", "output": 1e400}', "array": '[1, 2]',
           "twice": '{"input": "a 1", "input": "b 2", "output": 1}', "missing": '{"input": "a 1"}', "text": "hello",
           "half": '{"input": "a 1", "outp', "null": '{"input": "a 1", "output": null}', "list": '{"input": [1], "output": 1}'}
    places = 0
    for name, line in bad.items():
        trial.write(f"{name}.jsonl", "\n".join([*plain[:20], line, *plain[20:]]) + "\n")
        result = train(f"{name}.jsonl")
        expect(result.code in (1, 2) and "hint:" in result.err, f"{name}: {result}")
        places += "line 21" in result.err or "row 21" in result.err
    expect(places == len(bad), f"{places} of {len(bad)} name the line")
    for name, data in {"utf16": "\n".join(plain).encode("utf-16"), "latin1": '{"input": "Käse 1", "output": 1}\n'.encode("latin-1") * 20,
                       "gz": b"\x1f\x8b\x08\0" + bytes(40), "empty": b"", "csv": b"a,b\n1,2\n"}.items():
        trial.write(f"{name}.jsonl", data)
        result = train(f"{name}.jsonl")
        expect(result.code in (1, 2) and f"{name}.jsonl" in result.err, f"{name}: {result}")
    pipe = trial.run(f"launch text --run-id pipe {SHORT} --model-name demo --dataset.file /dev/stdin",
                     shell=f'cat plain.jsonl | "$0" "$@"')
    expect(pipe.code in (1, 2) and "hint:" in pipe.err, pipe)
    big = trial.write("big.jsonl", "\n".join(json.dumps({"input": f"a {i}", "output": 1e300}) for i in range(20)))
    result = train(big.name)
    longest = max(len(word) for word in result.err.split())
    expect(longest < 120, f"a word of {longest} characters: {result.err[-600:]}")
    return f"{len(good)} read to the same bits, {len(bad)} refused with their line, 5 other formats named; pipe: {pipe.error[:110]}; " \
           f"1e300: {result.error[:100]}"


@row(23, "one sample too long, late in the file")
def long_sample(trial):
    trial.copy("tokenizer")
    rows = [json.dumps({"input": f"a {i % 90}", "output": i % 90}) for i in range(4000)]
    rows[3499] = json.dumps({"input": "12 " * 90, "output": 1})
    trial.write("rows.jsonl", "\n".join(rows))
    result = trial.refused(f"launch text --model-name model --dataset.file rows.jsonl --num-epochs 1 --run-id a --num-batches 500", "3500")
    expect("step " not in result.err.split("3500")[0] or trial.newest("a") == 0, result)
    expect(trial.newest("a") == 0, "it trained")
    return "before step 0: " + result.error


@row(29, "projectors of another base, .bin, bare tensors, a checkpoint that was saved again")
def foreign(trial):
    trial.copy("small-f32")
    trial.train("demo", more="--model-name demo")
    other = trial.refused(f"launch nn --run-id b --model-name model --model-path-load chk/demo.safetensors {SHORT}", "chk/demo", "hint:")
    expect("worker" not in other.error, other)
    torch.save({"mm_projector.weight": torch.ones(3)}, trial / "mm_projector.bin")
    bin_ = trial.refused(f"launch nn --run-id c --model-path-load mm_projector.bin {SHORT}", "mm_projector.bin", "hint:")
    expect("resume" not in bin_.error, bin_)
    path = trial / "chk/demo.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, trial / "again.safetensors", metadata=metadata)
    expect((trial / "again.safetensors").read_bytes() != path.read_bytes(), "saved in the same order")
    predict = lambda name: trial.ok(f"predict --checkpoint {name} 12.5 80 --json").out
    expect(predict("again.safetensors") == predict("chk/demo.safetensors"), "other answers")
    verify = trial.ok("verify again.safetensors")
    changed = [line for line in (verify.out + verify.err).splitlines() if "order" in line or "again" in line]
    save_file({name: value for name, value in tensors.items() if "optimizer" not in name}, trial / "bare.safetensors")
    trial.refused("predict --checkpoint bare.safetensors 1", "numalign import")
    trial.ok("import bare.safetensors --stage nn --model-name demo --out mine.safetensors")
    expect(predict("mine.safetensors") == predict("chk/demo.safetensors"), "imported: other answers")
    return f"{other.error[:150]}; .bin: {bin_.error[:110]}; saved again: same answers ({' '.join(changed)[:90]}); bare: import, same answers"


@row(30, "the same weights, another tokenizer.json")
def swapped(trial):
    for name in ("model", "other"):
        trial.copy("tokenizer", name)
    path = trial / "other/tokenizer.json"
    document = json.loads(path.read_text())
    vocab = document["model"]["vocab"]
    vocab["1"], vocab["2"] = vocab["2"], vocab["1"]
    path.write_text(json.dumps(document))
    trial.train("a", "text", "--model-name model")
    told = trial.refused("eval --checkpoint chk/a.safetensors --count 4 --model other", "was trained with another tokenizer", "hint:")
    trial.refused("predict --checkpoint chk/a.safetensors --model other 12.5", "another tokenizer")
    return told.error + "; workers: test `a_worker_with_another_tokenizer_is_refused_in_words`"


@row(31, "the tokenizer adds BOS")
def bos(trial):
    source = TESTDATA / "tokenizers/llama-bos"
    folder = trial.copy("tokenizers/llama-bos", "tokens")
    from .models import LLAMA, LlamaConfig, LlamaModel, saved
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    saved(trial, LlamaModel(LlamaConfig(**LLAMA | {"vocab_size": size})))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, trial / "model")
    tokenizer = AutoTokenizer.from_pretrained(trial / "model")
    expect(trial.ids("model", "12.5 kg") == tokenizer("12.5 kg", add_special_tokens=False)["input_ids"], "other ids without")
    with_bos = trial.ids("model", "12.5 kg", "--add-special-tokens")
    expect(with_bos == tokenizer("12.5 kg")["input_ids"], "other ids with")
    files = [trial.train(f"bos{value}", "text", f"--model-name model --add-special-tokens {value}") for value in ("true", "false")]
    expect(files[0] != files[1], "the key changes nothing")
    return "add_special_tokens false and true: ids as AutoTokenizer's; docs/MODELS.md says so"


@row(32, "the hub's cache: offline, names of variables, ~, revisions")
def cache(trial):
    commit, blob = "0123456789abcdef0123456789abcdef01234567", TESTDATA / "small-f32"
    home = trial / "home"

    def fill(root):
        base = root / "models--me--tiny"
        snapshot = base / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (base / "refs").mkdir()
        (base / "refs/main").write_text(commit)
        (base / "refs/v1.0").write_text(commit)
        (base / "blobs").mkdir()
        for name in ("config.json", "model.safetensors"):
            key = hashlib.sha256((blob / name).read_bytes()).hexdigest()
            shutil.copy(blob / name, base / "blobs" / key)
            (snapshot / name).symlink_to(f"../../blobs/{key}")
        return base

    wanted = trial.hidden(trial.copy("small-f32"), [1, 2])
    cases = [({"HF_HOME": "{}/a"}, "a/hub"), ({"HF_HUB_CACHE": "{}/b"}, "b"), ({"HUGGINGFACE_HUB_CACHE": "{}/c"}, "c"),
             ({"XDG_CACHE_HOME": "{}/d"}, "d/huggingface/hub"), ({"HF_HOME": "~/e", "HOME": "{}/home"}, "home/e/hub"),
             ({"HF_HUB_CACHE": "$WHERE/f", "WHERE": "{}"}, "f"), ({"HOME": "{}/g"}, "g/.cache/huggingface/hub"),
             ({"HF_HUB_CACHE": "{}/h", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, "h")]
    home.mkdir()
    for env, place in cases:
        fill(trial / place)
        trial.environment.pop("HF_HOME", None)
        env = {key: value.format(trial.folder) for key, value in env.items()}
        got = trial.ok("hidden --model me/tiny --ids 1,2 --json", env=env).json["hidden"]
        expect(got == wanted, env)
    env = {"HF_HUB_CACHE": str(trial / "b")}
    for revision in ("main", "v1.0", commit):
        expect(trial.ok(f"hidden --model me/tiny@{revision} --ids 1,2 --json", env=env).json["hidden"] == wanted, revision)
    trial.refused("hidden --model me/tiny@v2 --ids 1", "v2", env=env)
    absent = trial.refused("hidden --model me/gone --ids 1", "hint:", env=env)
    for file in (trial / "b/models--me--tiny/blobs").iterdir():
        file.unlink()
    gone = trial.refused("hidden --model me/tiny --ids 1", "hint:", env=env)
    return f"{len(cases)} ways to say where, 3 revisions: found; absent: {absent.error[:100]}; gone blob: {gone.error[:130]}"
