"""Measure what a step costs as work grows, fit the formulas of scaling_model.py, and write docs/scaling.json, docs/scaling.svg and
the tables in docs/SCALING.md.

Usage: python bench/scaling.py [--binary target/release/numalign] [--quick] [--rounds 3] [--docs docs]
       python bench/scaling.py --report       # figure and tables again, from docs/scaling.json
       python bench/scaling.py --predict      # the predictions for 8, 64 and 1,000 GPUs, as Markdown

Measuring takes some minutes, and 12 GiB of memory for GPT-2 XL; the machine has to be quiet. --quick tries the script itself: the
demo model, few steps, nothing to report. Needs the standard library only; as root and with `unshare`, network bytes are counted too.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile

import scaling_figure as draw
import scaling_model as model
from scaling_report import BATCH, MICRO_BATCHES, MOST_WORKERS, fitted, panels, prediction_table, tables

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
DEPTH = {
    "sizes": ["small", "medium", "large", "xl"],
    "positions": [1, 4, 16, 64, 128],
    "batches": [1, 2, 8, 32, 128],
    "base": "small",
    "crowds": [(1, 768), (10, 768), (100, 768), (300, 768), (1000, 768), (10, 4096), (100, 4096), (300, 4096)],
    "counted": [(4, 768), (32, 768), (32, 1600)],
    "launch": (6, 10),
    "steps": None,
}
SHALLOW = {
    "sizes": ["demo"],
    "positions": [1, 2, 8],
    "batches": [1, 4, 8],
    "base": "demo",
    "crowds": [(1, 192), (3, 192), (10, 192), (3, 768)],
    "counted": [(2, 192)],
    "launch": (2, 5),
    "steps": 2,
}

# --- measuring ---------------------------------------------------------------------------------------------------------


def run(command, threads=None, folder=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMALIGN_")}
    if threads:
        environment["RAYON_NUM_THREADS"] = str(threads)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with exit code {result.returncode}:\n{result.stderr[-2000:]}")
    return result.stdout


def name_of(size):
    return "demo" if size == "demo" else f"synthetic:{size}"


def step(settings, size, batch, positions, dtype="f32", threads=None):
    """One point: the median over the rounds of `bench step`'s median."""
    layers, hidden = model.SIZES[size]
    work = model.step_flops(layers, hidden, batch, positions)
    # About two seconds at 60 GFLOP/s, from 2 to 30 steps.
    steps = settings.steps or max(2, min(30, round(2 * 60e9 / work)))
    command = [
        settings.binary,
        "bench",
        "step",
        "--model",
        name_of(size),
        "--batch",
        str(batch),
        "--positions",
        str(positions),
        "--steps",
        str(steps),
        "--dtype",
        dtype,
        "--device",
        "cpu",
        "--json",
    ]
    results = [json.loads(run(command, threads)) for _ in range(settings.rounds)]
    times = [result["ms_per_step"] for result in results]
    point = {
        "size": size,
        "batch": batch,
        "positions": positions,
        "dtype": dtype,
        "threads": threads,
        "ms": statistics.median(times),
        "least": min(times),
        "most": max(times),
        "peak_mib": max(result["peak_rss_mib"] for result in results),
    }
    print(
        f"{size} {dtype} {batch}x{positions}: {point['ms']:.1f} ms ({min(times):.1f} to {max(times):.1f}), {point['peak_mib']} MiB",
        file=sys.stderr,
    )
    return point


def launched(settings, workers):
    """ms/step of `launch` with one thread per worker: the median over the epochs but the first, and over the rounds."""
    epochs, batches = settings.launch
    times = []
    for _ in range(settings.rounds):
        with tempfile.TemporaryDirectory() as folder:
            run(
                [
                    settings.binary,
                    "launch",
                    "nn",
                    "--model-name",
                    name_of(settings.base),
                    "--workers",
                    str(workers),
                    "--no-eval",
                    "--batch-size",
                    str(BATCH * MICRO_BATCHES),
                    "--micro-batch-size",
                    str(BATCH),
                    "--num-epochs",
                    str(epochs),
                    "--num-batches",
                    str(batches),
                    "--audit-every",
                    "0",
                    "--device",
                    "cpu",
                    "--run-id",
                    "scaling",
                ],
                1,
                folder,
            )
            with open(os.path.join(folder, "chk/scaling/metrics.jsonl")) as file:
                lines = [json.loads(line) for line in file]
        full = [line["ms_per_step"] for line in lines if line["kind"] == "epoch" and line["world"] == workers]
        times += full[1:] or full
    if not times:
        sys.exit(f"with {workers} workers no epoch had all of them: give --launch more epochs")
    print(f"{workers} workers: {statistics.median(times):.1f} ms", file=sys.stderr)
    return {"workers": workers, "ms": statistics.median(times), "least": min(times), "most": max(times)}


def coordinator_bench(settings, workers, hidden, steps):
    sizes = ["--workers", str(workers), "--hidden", str(hidden), "--steps", str(steps)]
    return [settings.binary, "bench", "coordinator", *sizes, "--json"]


def crowd(settings, workers, hidden):
    # The coordinator's processor time is looked at every 0.1 s: a run has to last some seconds.
    steps = settings.steps and 40 * settings.steps or max(30, min(3000, 30000 // workers))
    command = coordinator_bench(settings, workers, hidden, steps)
    results = [json.loads(run(command)) for _ in range(settings.rounds)]
    middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
    print(
        f"coordinator, {workers} workers, d={hidden}: {middle['p50_ms']:.2f} ms, {middle['coordinator_cpu_ms_per_step']:.2f} ms of processor",
        file=sys.stderr,
    )
    return {
        "workers": workers,
        "hidden": hidden,
        "p50_ms": middle["p50_ms"],
        "p99_ms": middle["p99_ms"],
        "cpu_ms": middle["coordinator_cpu_ms_per_step"],
        "rss_per_worker_kib": middle["rss_per_worker_kib"],
    }


def counted(settings, workers, hidden):
    """Bytes per step on a loopback interface of its own: what two runs of different lengths differ by."""
    few, many = 50, 250
    totals = []
    for steps in (few, many):
        script = 'ip link set lo up && "$@" >/dev/null && awk \'$1 == "lo:" { print $2 }\' /proc/net/dev'
        command = coordinator_bench(settings, workers, hidden, steps)
        totals.append(int(run(["unshare", "--net", "sh", "-c", script, "count", *command])))
    seen = (totals[1] - totals[0]) / (many - few)
    print(f"{workers} workers, d={hidden}: {seen:.0f} bytes per step", file=sys.stderr)
    return {"workers": workers, "hidden": hidden, "bytes": seen}


def can_count():
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL).returncode == 0


def processor():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(settings):
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"warning: load average {load:.1f}; other work on this machine is in the figures", file=sys.stderr)
    points = [step(settings, size, BATCH, 1) for size in settings.sizes]
    rounded = step(settings, settings.sizes[-1], BATCH, 1, "bf16")
    points += [step(settings, settings.base, BATCH, positions) for positions in settings.positions if positions > 1]
    points += [step(settings, settings.base, batch, 1) for batch in settings.batches if batch != BATCH]
    parts = sorted({BATCH * share for n in range(1, MOST_WORKERS + 1) for share in model.shares(MICRO_BATCHES, n) if share})
    return {
        "machine": f"{os.cpu_count()} cores of {processor()}",
        "cores": os.cpu_count(),
        "load": load,
        "rounds": settings.rounds,
        "quick": settings.quick,
        "base": settings.base,
        "points": points,
        "rounded": rounded,
        "parts": [step(settings, settings.base, batch, 1, threads=1) for batch in parts],
        "workers": [launched(settings, workers) for workers in range(1, MOST_WORKERS + 1)],
        "crowds": [crowd(settings, workers, hidden) for workers, hidden in settings.crowds],
        "bytes": [counted(settings, workers, hidden) for workers, hidden in settings.counted] if can_count() else [],
    }


# --- main -----------------------------------------------------------------------------------------------------------------


def report(settings, measured):
    constants = fitted(measured)
    with open(os.path.join(settings.docs, "scaling.svg"), "w") as file:
        file.write(draw.figure(panels(measured, constants)))
    path = os.path.join(settings.docs, "SCALING.md")
    if not os.path.exists(path):
        print("\n\n".join(tables(measured, constants).values()))
        return
    with open(path) as file:
        text = file.read()
    for name, made in tables(measured, constants).items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        if start not in text or end not in text:
            sys.exit(f"{path} has no place for the table {name}: {start.strip()} … {end.strip()}")
        text = text[: text.index(start) + len(start)] + made + text[text.index(end) :]
    with open(path, "w") as file:
        file.write(text)
    print(f"wrote {path} and scaling.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "release", "numalign"))
    parser.add_argument("--docs", default=os.path.join(ROOT, "docs"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--predict", action="store_true")
    settings = parser.parse_args()
    for name, value in (SHALLOW if settings.quick else DEPTH).items():
        setattr(settings, name, value)
    path = os.path.join(settings.docs, "scaling.json")
    if settings.report or settings.predict:
        with open(path) as file:
            measured = json.load(file)
    else:
        measured = measure(settings)
        with open(path, "w") as file:
            json.dump(measured, file, indent=1)
            file.write("\n")
    if settings.predict:
        print(prediction_table(fitted(measured)))
    else:
        report(settings, measured)


if __name__ == "__main__":
    main()
