"""What a row of the table of public reports is tried with: a folder, the program, and checks that say what happened."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
TESTDATA = ROOT / "testdata"
PROGRAM = None
ROWS = {}
# A run of some seconds' fraction whose bytes are compared.
STEPS = "--num-epochs 3 --num-batches 10 --batch-size 8 --micro-batch-size 4 --checkpoint-every 10"
SHORT = f"{STEPS} --no-eval"
LONG = "--num-epochs 1000000 --num-batches 20 --checkpoint-every 1000000 --no-eval"


class Failed(Exception):
    """A row that does not do what it should."""


class Skipped(Exception):
    """A row that this machine cannot try."""


def row(key, title):
    """Registers a function of one `Trial` under its row; what it returns says what happens now."""
    def register(function):
        ROWS[key] = (title, function)
        return function
    return register


def expect(condition, what):
    if not condition:
        text = str(what)
        raise Failed(text if len(text) < 1500 else f"{text[:700]} … {text[-800:]}")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __str__(self):
        return f"exit {self.code}\n{self.out[-600:]}\n{self.err[-1500:]}"

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def error(self):
        """The error's line with its hint."""
        found = re.findall(r"^(?:error|hint): .*", self.err, re.M)
        return " / ".join(found[-2:])[:300]


def clean_environment():
    """The caller's, without what would change what the program does."""
    foreign = re.compile(r"NUMALIGN_|HF_|HUGGINGFACE_|MASTER_|SLURM_|LOCAL_RANK|XDG_|.*_proxy$", re.I)
    return {key: value for key, value in os.environ.items() if not foreign.match(key)} | {"HF_HUB_OFFLINE": "1"}


class Trial:
    """A temporary folder, and the program in it. Every process ends with the trial."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="report-"))
        self.environment = clean_environment() | {"HF_HOME": str(self.folder / "no-cache")}
        self.children = []

    def close(self):
        for child in self.children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __truediv__(self, name):
        return self.folder / name

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def copy(self, fixture, name="model"):
        """A copy of a folder of testdata/, without its reference numbers."""
        shutil.copytree(TESTDATA / fixture, self.folder / name, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("reference.json", "reads.json"))
        return self.folder / name

    def start(self, args, env=None, shell=None, **more):
        """Starts the program, or a shell script in which `"$0" "$@"` is the program; its own process group."""
        words = args.split() if isinstance(args, str) else [str(word) for word in args]
        command = [PROGRAM, *words] if shell is None else ["bash", "-c", shell, PROGRAM, *words]
        child = subprocess.Popen(command, cwd=self.folder, env=self.environment | (env or {}), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **more)
        self.children.append(child)
        return child

    def run(self, args, env=None, shell=None, timeout=120, **more):
        child = self.start(args, env, shell, **more)
        return self.finish(child, timeout)

    def finish(self, child, timeout=120):
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            raise Failed(f"not ended after {timeout} s: {child.args}\n{err.decode(errors='replace')[-800:]}") from None
        result = Result(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
        expect("panicked" not in result.err, f"a panic: {child.args}\n{result}")
        return result

    def ok(self, args, **more):
        result = self.run(args, **more)
        expect(result.code == 0, f"{args}: {result}")
        return result

    def refused(self, args, *said, code=1, **more):
        """It ends with `code` and words; no panic, no Python-like trace."""
        result = self.run(args, **more)
        expect(result.code == code, f"{args}: wanted exit {code}: {result}")
        for words in said:
            expect(words in result.err, f"{args}: `{words}` is not said: {result}")
        return result

    def ids(self, model, text, *more):
        return self.ok(["hidden", "--model", model, "--text", text, "--json", *more]).json["ids"]

    def hidden(self, model, ids):
        return self.ok(["hidden", "--model", model, "--ids", ",".join(map(str, ids)), "--json"]).json["hidden"]

    def train(self, run="run", stage="nn", more="", **options):
        """A short run; the bytes of its final file."""
        self.ok(f"launch {stage} --run-id {run} {SHORT} {more}", **options)
        return (self.folder / f"chk/{run}.safetensors").read_bytes()

    def newest(self, run="run"):
        steps = (self.folder / "chk" / run).glob("step-*.safetensors")
        return max((int(path.stem.split("-")[1]) for path in steps), default=0)

    def until(self, what, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            expect(time.monotonic() < deadline, f"not seen in {seconds} s: {what}")
            time.sleep(0.05)
