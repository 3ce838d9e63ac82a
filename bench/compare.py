"""Time `numalign bench step` against its PyTorch twin, interleaved, and print a Markdown table.

Usage: python compare.py [--binary target/release/numalign] [--rounds 5] [--cases 8x1,64x1,8x128] [--original] [--threads N]
                         [--dtype f32|bf16]

Each round runs ours, then PyTorch (A B A B ...), so that a busy machine disturbs both alike; the ratio is taken per round.
--dtype bf16 compares `arithmetic: bf16` with PyTorch's model in bfloat16.
--original adds 2x1024: ours as `config/original.yaml` works (frozen, no LM head) against the twin's --original job.
On a GPU `gpu_table.py` does this.
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

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", default=os.path.join(ROOT, "target", "release", "numalign"))
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--cases", default="8x1,64x1,8x128", help="comma-separated BATCHxPOSITIONS; may be empty")
parser.add_argument("--steps", type=int, help="timed steps per run; default depends on the case")
parser.add_argument("--original", action="store_true")
parser.add_argument("--original-rounds", type=int, default=2)
parser.add_argument("--size", default="small")
parser.add_argument("--threads", type=int, help="threads for both sides; default: each side's own choice")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="what factors of products are rounded to")
arguments = parser.parse_args()


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
    ours = run([arguments.binary, "bench", "step", "--model", f"synthetic:{arguments.size}", *shape, "--arithmetic", arguments.dtype, "--device", "cpu", "--json"])
    twin = [sys.executable, os.path.join(HERE, "twin.py"), "--size", arguments.size, "--dtype", arguments.dtype, *shape]
    if arguments.threads:
        twin += ["--threads", str(arguments.threads)]
    if original:
        twin.append("--original")
    return ours, run(twin)


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
    print(f"GPT-2 {arguments.size}, stage `nn`, {arguments.dtype}, {os.cpu_count()} {platform.machine()} cores; medians of interleaved rounds\n")
    print("| batch×positions | numalign ms/step | PyTorch ms/step | ratio (min–max) | numalign peak MiB | PyTorch peak MiB |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
