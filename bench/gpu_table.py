"""One table of a GPU's speed: numalign's training step beside PyTorch's, eager and compiled, in the same run.

Usage: python gpu_table.py --binary NUMALIGN [--cases small:8x1,...] [--dtypes f32,bf16] [--steps N] [--seconds S] [--json FILE]
                           [--model NAME] [--device cuda|cpu] [--matrix-rows N]

A case is SIZE:BATCHxPOSITIONS of stage `nn`. f32 is TF32 on both sides, where the GPU has it. Bytes are the least that a step
has to move: the blocks' weights twice (forward, back) and each block's input once in each direction; the rate of matrix
products is what numalign itself measures with the same operations (`bench step --matrix-rate`). Launches are counted by the
emulated GPU, see docs/GPUS.md. torch.compile is left out once two fifths of --seconds are over, and no case begins after them.
Without torch the table has numalign's columns alone. --device cpu runs PyTorch on the CPU, and --model another model than
GPT-2's: for a rehearsal without a GPU, where numalign itself runs over the emulated one.
"""
import argparse
import json
import subprocess
import sys
import time

SIZES = {"small": (768, 12), "medium": (1024, 24), "large": (1280, 36), "xl": (1600, 48)}
CASES = "small:8x1,small:64x1,small:8x128,small:8x1024,large:8x1024"
STEPS = {"8x1": 100, "64x1": 100, "8x128": 50}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", required=True)
parser.add_argument("--cases", default=CASES)
parser.add_argument("--dtypes", default="f32,bf16")
parser.add_argument("--steps", type=int, help="timed steps per run; default depends on the case")
parser.add_argument("--seconds", type=float, default=400, help="after so many no case begins")
parser.add_argument("--json", help="write the figures to this file")
parser.add_argument("--model", help="numalign's model in the place of synthetic:SIZE")
parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="PyTorch's device")
parser.add_argument("--matrix-rows", default="8192")
arguments = parser.parse_args()
started = time.monotonic()

try:
    import torch
    import twin
except ImportError as missing:
    print(f"PyTorch's columns are left out: {missing}", file=sys.stderr)
    twin = None
else:
    torch.set_float32_matmul_precision("high")


def numalign(size, dtype, batch, positions, steps):
    command = [arguments.binary, "bench", "step", "--model", arguments.model or f"synthetic:{size}", "--device", "cuda"]
    command += ["--batch", str(batch), "--positions", str(positions), "--steps", str(steps), "--dtype", dtype]
    command += ["--matrix-rate", "--matrix-rows", arguments.matrix_rows, "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {result.returncode}:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def pytorch(model, batch, positions, steps):
    """Milliseconds of a step, or why there are none."""
    if model is None:
        return None
    try:
        return 1000 * model.median(batch, positions, steps)
    except Exception as error:  # a missing compiler, memory: the other columns stand
        print(f"PyTorch: {error}", file=sys.stderr)
        return None


def operations(size, batch, positions):
    """Floating-point operations of a step: two passes (forward, back to the embeddings) of two per multiply-add."""
    width, layers = SIZES[size]
    # With one position attention is its value: queries and keys are not computed.
    weights = layers * (10 if positions == 1 else 12) * width * width
    attention = 0 if positions == 1 else layers * 2 * positions * width
    return 4 * batch * positions * (weights + attention)


def least_bytes(size, dtype, batch, positions):
    width, layers = SIZES[size]
    weights = layers * (10 if positions == 1 else 12) * width * width * {"f32": 4, "bf16": 2, "f16": 2}[dtype]
    activations = layers * batch * positions * width * 4
    return 2 * (weights + activations)


def milliseconds(value):
    return "–" if value is None else f"{value:.2f}"


def elapsed():
    return time.monotonic() - started


def measure(case, dtype, eager, compiled):
    size, shape = case.split(":")
    batch, positions = map(int, shape.split("x"))
    steps = arguments.steps or STEPS.get(shape, 10)
    ours = numalign(size, dtype, batch, positions, steps)
    figures = {"case": case, "dtype": dtype, "numalign": ours, "eager_ms": pytorch(eager, batch, positions, steps)}
    in_time = elapsed() < 0.4 * arguments.seconds
    figures["compiled_ms"] = pytorch(compiled if in_time else None, batch, positions, steps)
    ms, rate = ours["ms_per_step"], ours["matrix_flops"]
    figures["gb_per_s"] = least_bytes(size, dtype, batch, positions) / ms / 1e6
    figures["share"] = 100 * operations(size, batch, positions) / (ms / 1000) / rate
    row = f"| {size} {batch}×{positions} | {dtype} | {ms:.2f} | {milliseconds(figures['eager_ms'])} | {milliseconds(figures['compiled_ms'])} "
    print(row + f"| {figures['gb_per_s']:.0f} | {figures['share']:.0f} % of {rate / 1e12:.1f} TFLOP/s | {ours['peak_device_mib']} |", flush=True)
    return figures


def main():
    print("| GPT-2, batch×positions | weights | numalign ms/step | PyTorch eager | torch.compile | GB/s at least | share of the matrix rate | MiB on the GPU |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    log = []
    for size in dict.fromkeys(case.split(":")[0] for case in arguments.cases.split(",")):
        for dtype in arguments.dtypes.split(","):
            if elapsed() > arguments.seconds:
                print(f"{size} in {dtype} is left out: the time is over", file=sys.stderr)
                continue
            eager = compiled = None
            if twin is not None:
                eager, compiled = twin.Twin(size, arguments.device, dtype), twin.Twin(size, arguments.device, dtype)
                compiled.compile()
            for case in arguments.cases.split(","):
                if not case.startswith(f"{size}:"):
                    continue
                if elapsed() > arguments.seconds:
                    print(f"{case} in {dtype} is left out: the time is over", file=sys.stderr)
                    continue
                log.append(measure(case, dtype, eager, compiled))
                if arguments.json:
                    with open(arguments.json, "w") as file:
                        json.dump(log, file, indent=1)
            del eager, compiled


if __name__ == "__main__":
    main()
