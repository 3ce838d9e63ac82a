"""The kernels of one training step on a GPU, with how often each runs and how long it takes, by NVIDIA's Nsight Compute (ncu).

Usage: python gpu_kernels.py --binary NUMALIGN [--model synthetic:small] [--shape BATCHxPOSITIONS] [--dtype f32]

Each kernel is timed alone, so the sum has no gaps between kernels: compare it with the step's own time (gpu_table.py).
"""
import argparse
import collections
import csv
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", required=True)
parser.add_argument("--model", default="synthetic:small")
parser.add_argument("--shape", default="8x1")
parser.add_argument("--dtype", default="f32")
arguments = parser.parse_args()

METRIC = "gpu__time_duration.sum"


def kernels(steps):
    """(name, grid, block) and microseconds of every kernel of a run with so many steps."""
    batch, positions = arguments.shape.split("x")
    command = ["ncu", "--clock-control", "none", "--metrics", METRIC, "--csv", "--page", "raw", "--print-units", "base"]
    command += [arguments.binary, "bench", "step", "--model", arguments.model, "--device", "cuda", "--dtype", arguments.dtype]
    command += ["--batch", batch, "--positions", positions, "--steps", str(steps)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {result.returncode}:\n{(result.stdout + result.stderr)[-2000:]}")
    lines = result.stdout.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith('"ID"'))
    rows = list(csv.DictReader(lines[header:]))[1:]  # the first row holds units
    return [((row["Kernel Name"], row["Grid Size"], row["Block Size"]), float(row[METRIC].replace(",", "")) / 1000) for row in rows]


def main():
    # Three steps warm up; each kernel of the run whose count is a multiple of the steps belongs to them.
    steps = 4
    counts, times = collections.Counter(), collections.Counter()
    for name, microseconds in kernels(steps - 3):
        counts[name] += 1
        times[name] += microseconds
    print(f"{arguments.model} {arguments.shape} {arguments.dtype}: kernels of one step")
    print("| kernel | grid | threads | times | µs each | µs together |")
    print("|---|---|---|---|---|---|")
    total = launches = 0
    for name, microseconds in times.most_common():
        each = counts[name] // steps
        if each == 0:
            continue
        kernel, grid, block = name
        print(f"| {kernel[:60]} | {grid} | {block} | {each} | {microseconds / counts[name]:.1f} | {microseconds / steps:.0f} |")
        total += microseconds / steps
        launches += each
    print(f"together {launches} kernels, {total:.0f} µs")


if __name__ == "__main__":
    main()
