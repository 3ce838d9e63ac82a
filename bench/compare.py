"""Time `numalign bench step` against its PyTorch twin, interleaved, and print a Markdown table.

Usage: python compare.py [--binary target/release/numalign] [--rounds 5] [--cases 8x1,64x1,8x128] [--original] [--threads N]
                         [--device cuda [--dtype f32|bf16] [--tf32] [--compile] [--json FILE]]

Each round runs ours, then PyTorch (A B A B ...), so that a busy machine disturbs both alike; the ratio is taken per round.
--original adds 2x1024: ours as `config/original.yaml` works (frozen, no LM head) against the twin's --original job.
--device cuda: both on the first GPU, with positions/s, peak device memory and the share of the matrix rate that numalign
itself measures with the same operations (`bench step --matrix-rate`); --compile times the twin under torch.compile too.
Not run on hardware by those who wrote it. `bench/gpu.sh` runs all of it.
Run it with the Python that has torch and transformers (the twin is started with the same interpreter).
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
STEPS = {"8x1": 30, "64x1": 10, "8x128": 3}
STEPS_CUDA = {"8x1": 100, "64x1": 100, "8x1024": 20}
SIZES = {"small": (768, 12), "medium": (1024, 24), "large": (1280, 36), "xl": (1600, 48)}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", default=os.path.join(ROOT, "target", "release", "numalign"))
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--cases", help="comma-separated BATCHxPOSITIONS; may be empty (8x1,64x1,8x128; on cuda 8x1,64x1,8x1024)")
parser.add_argument("--steps", type=int, help="timed steps per run; default depends on the case")
parser.add_argument("--original", action="store_true")
parser.add_argument("--original-rounds", type=int, default=2)
parser.add_argument("--size", default="small")
parser.add_argument("--threads", type=int, help="threads for both sides; default: each side's own choice")
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="the frozen model's weights; the twin's activations too")
parser.add_argument("--tf32", action="store_true", help="the twin multiplies f32 in TF32")
parser.add_argument("--compile", action="store_true", help="time the twin under torch.compile too (cuda)")
parser.add_argument("--json", help="write every round's figures to this file")
arguments = parser.parse_args()
if arguments.cases is None:
    arguments.cases = "8x1,64x1,8x128" if arguments.device == "cpu" else "8x1,64x1,8x1024"


def run(command):
    environment = dict(os.environ)
    if arguments.threads:
        environment["RAYON_NUM_THREADS"] = str(arguments.threads)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with exit code {result.returncode}:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def measure(batch, positions, steps, original):
    shape = ["--batch", str(batch), "--positions", str(positions), "--steps", str(steps)]
    ours = run([arguments.binary, "bench", "step", "--model", f"synthetic:{arguments.size}", *shape, "--device", "cpu", "--json"])
    twin = [sys.executable, os.path.join(HERE, "twin.py"), "--size", arguments.size, *shape]
    if arguments.threads:
        twin += ["--threads", str(arguments.threads)]
    if original:
        twin.append("--original")
    return ours, run(twin)


def measure_cuda(batch, positions, steps):
    """Ours, the twin in eager mode, and compiled where that is asked for."""
    shape = ["--batch", str(batch), "--positions", str(positions), "--steps", str(steps)]
    ours = run([arguments.binary, "bench", "step", "--model", f"synthetic:{arguments.size}", *shape, "--device", "cuda",
                "--dtype", arguments.dtype, "--matrix-rate", "--json"])
    twin = [sys.executable, os.path.join(HERE, "twin.py"), "--size", arguments.size, *shape, "--device", "cuda", "--dtype", arguments.dtype]
    if arguments.tf32:
        twin.append("--tf32")
    return [ours, run(twin), run([*twin, "--compile"]) if arguments.compile else None]


def operations(batch, positions):
    """Floating-point operations of a step: two passes (forward, back to the embeddings) of two per multiply-add."""
    width, layers = SIZES[arguments.size]
    # With one position attention is its value: queries and keys are not computed.
    weights = layers * (10 if positions == 1 else 12) * width * width
    attention = 0 if positions == 1 else layers * 2 * positions * width
    return 4 * batch * positions * (weights + attention)


def row_cuda(label, batch, positions, steps, rounds, log):
    runs = []
    for number in range(rounds):
        runs.append(measure_cuda(batch, positions, steps))
        log.append({"case": label, "size": arguments.size, "dtype": arguments.dtype, "tf32": arguments.tf32, "round": number, "ours": runs[-1][0], "eager": runs[-1][1], "compiled": runs[-1][2]})
        print(f"{label} round {number + 1}/{rounds}: " + ", ".join(f"{side['ms_per_step']:.2f} ms" for side in runs[-1] if side), file=sys.stderr)
    middle = lambda side: statistics.median(one[side]["ms_per_step"] for one in runs)
    ours_ms, eager_ms = middle(0), middle(1)
    compiled_ms = f"{middle(2):.2f}" if arguments.compile else "–"
    ratios = [one[0]["ms_per_step"] / one[1]["ms_per_step"] for one in runs]
    rate = statistics.median(one[0]["matrix_flops"] for one in runs)
    share = 100 * operations(batch, positions) / (ours_ms / 1000) / rate
    memory = [max(one[side].get("peak_device_mib") or 0 for one in runs) for side in (0, 1)]
    return (f"| {label} | {ours_ms:.2f} | {eager_ms:.2f} | {compiled_ms} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
            f"| {batch * positions / ours_ms * 1000:.0f} | {memory[0]:.0f} | {memory[1]:.0f} | {share:.0f} % of {rate / 1e12:.1f} TFLOP/s |")


def main_cuda():
    rows, log = [], []
    for case in filter(None, arguments.cases.split(",")):
        batch, positions = map(int, case.split("x"))
        rows.append(row_cuda(f"{batch}×{positions}", batch, positions, arguments.steps or STEPS_CUDA.get(case, 20), arguments.rounds, log))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(log, file, indent=1)
    tf32 = " (TF32 products)" if arguments.tf32 else ""
    print(f"GPT-2 {arguments.size}, stage `nn`, weights in {arguments.dtype}, PyTorch in {arguments.dtype}{tf32}; medians of interleaved rounds\n")
    print("| batch×positions | numalign ms/step | PyTorch eager | torch.compile | ratio to eager (min–max) | positions/s | numalign peak MiB | PyTorch peak MiB | share of the matrix rate |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def row(label, batch, positions, steps, rounds, original=False):
    pairs = []
    for number in range(rounds):
        pairs.append(measure(batch, positions, steps, original))
        ours, twin = pairs[-1]
        print(f"{label} round {number + 1}/{rounds}: ours {ours['ms_per_step']:.1f} ms, PyTorch {twin['ms_per_step']:.1f} ms", file=sys.stderr)
    ours_ms, twin_ms = (statistics.median(pair[side]["ms_per_step"] for pair in pairs) for side in (0, 1))
    ours_mib, twin_mib = (max(pair[side]["peak_rss_mib"] for pair in pairs) for side in (0, 1))
    ratios = [ours["ms_per_step"] / twin["ms_per_step"] for ours, twin in pairs]
    return (f"| {label} | {ours_ms:.1f} | {twin_ms:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
            f"| {ours_mib:.0f} | {twin_mib:.0f} |")


def main():
    if arguments.device == "cuda":
        return main_cuda()
    load = os.getloadavg()[0]
    if load > 0.3 * os.cpu_count():
        # PyTorch's threads wait for each other by spinning: one busy core of two made it 13 times slower, ours less so.
        print(f"warning: load average {load:.1f}; other work on this machine distorts the ratios", file=sys.stderr)
    rows = []
    for case in filter(None, arguments.cases.split(",")):
        batch, positions = map(int, case.split("x"))
        rows.append(row(f"{batch}×{positions}", batch, positions, arguments.steps or STEPS.get(case, 5), arguments.rounds))
    if arguments.original:
        rows.append(row("2×1024 against the original job", 2, 1024, arguments.steps or 1, arguments.original_rounds, original=True))
    print(f"GPT-2 {arguments.size}, stage `nn`, f32, {os.cpu_count()} {platform.machine()} cores; medians of interleaved rounds\n")
    print("| batch×positions | numalign ms/step | PyTorch ms/step | ratio (min–max) | numalign peak MiB | PyTorch peak MiB |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
