#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU has to show, in one go, into one folder of results.
# NOT RUN ON HARDWARE YET: no GPU was at hand when it was written. What it starts has been run on the CPU, and NCCL's part
# with the fakes of crates/cli/tests/fake_cuda.
#
# Usage: bench/gpu.sh [FOLDER]     (default: gpu-results-<date>)
# Needs: Rust, a C compiler, the NVIDIA driver, NVRTC with CUDA's headers, NCCL (2.30 or later for two ranks on one GPU);
# for the comparison a python3 with torch (CUDA) and transformers, in PYTHON. Nothing is downloaded but crates.
# A step that fails is told and does not stop the others; the exit code is 1 if any failed.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
results=${1:-gpu-results-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$results"
results=$(cd "$results" && pwd)
python=${PYTHON:-python3}
failed=0

# step NAME SECONDS COMMAND...: runs it with a limit, keeps what it says.
step() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    if timeout --kill-after=30 "$seconds" "$@" >"$results/$name.out" 2>"$results/$name.err"; then
        echo "   ok"
    else
        echo "   FAILED (exit code $?), see $results/$name.err"
        tail -n 5 "$results/$name.err" | sed 's/^/   /'
        failed=1
    fi
}

step build 1800 cargo build --release --features cuda
binary=$root/target/release/numalign
nvidia-smi >"$results/nvidia-smi.out" 2>&1 || true

# Line 2: what is there; the numbers, the worlds, the kill, the speed.
step doctor 60 "$binary" doctor
step doctor-json 60 "$binary" doctor --json
step selftest 1800 "$binary" selftest --device cuda
step selftest-json 1800 "$binary" selftest --device cuda --quick --json

# Line 2: runs on GPT-2 small's shapes, in f32 and bf16, twice, and over NCCL: equal in bytes. Then the CPU's, within
# tolerance.
work=$results/runs
mkdir -p "$work"
settings="--model-name synthetic:small --num-epochs 3 --num-batches 20 --batch-size 16 --micro-batch-size 4 --seed 1 --no-eval"
launch() { # RUN STAGE MORE...
    local run=$1 stage=$2
    shift 2
    # shellcheck disable=SC2086
    step "run-$run" 1800 env -C "$work" NCCL_MULTI_RANK_GPU_ENABLE=1 "$binary" launch "$stage" $settings --run-id "$run" "$@"
}
same() { # RUN RUN: equal in bytes
    step "same-$1-$2" 60 cmp "$work/chk/$1.safetensors" "$work/chk/$2.safetensors"
}
for stage in nn text; do
    for dtype in f32 bf16; do
        base=$stage-$dtype
        launch "$base" $stage --dtype $dtype --device cuda --workers 1 --collective grpc
        launch "$base-again" $stage --dtype $dtype --device cuda --workers 1 --collective grpc
        launch "$base-nccl" $stage --dtype $dtype --device cuda --workers 1 --collective nccl
        launch "$base-cpu" $stage --dtype $dtype --device cpu --workers 1 --collective grpc
        same "$base" "$base-again"
        same "$base" "$base-nccl"
        step "near-$base" 60 "$python" - "$work/chk/$base.safetensors" "$work/chk/$base-cpu.safetensors" <<'PY'
import json, struct, sys
def tensors(path):
    data = open(path, "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        yield name, struct.unpack(f"<{(end - start) // 4}f", data[start:end])
ours, cpu = dict(tensors(sys.argv[1])), dict(tensors(sys.argv[2]))
worst = 0.0
for name in cpu:
    if name.startswith("optimizer."):
        continue
    size = max(abs(v) for v in cpu[name]) or 1.0
    apart = max(abs(a - b) for a, b in zip(ours[name], cpu[name])) / size
    print(f"{name}: relative difference {apart:.2e}")
    worst = max(worst, apart)
sys.exit(worst > 2e-2)
PY
    done
done

# Line 3: two ranks (on one GPU where there is only one), a killed rank, the same bytes.
launch two-nccl nn --device cuda --workers 2 --collective nccl
same nn-f32 two-nccl
launch two-grpc nn --device cuda --workers 2 --collective grpc
same nn-f32 two-grpc
launch killed-nccl nn --device cuda --workers 2 --collective nccl --chaos seed=1,kill=400ms,kills=2,slow=20
same nn-f32 killed-nccl
launch auto nn --device cuda --workers auto
same nn-f32 auto

# Line 4: against PyTorch, eager and compiled: f32 without and with TF32, and bf16.
compare=("$python" bench/compare.py --binary "$binary" --device cuda --compile --rounds 5)
step compare-small-f32 3600 "${compare[@]}" --json "$results/compare-small-f32.json"
step compare-small-tf32 3600 "${compare[@]}" --tf32 --json "$results/compare-small-tf32.json"
step compare-small-bf16 3600 "${compare[@]}" --dtype bf16 --json "$results/compare-small-bf16.json"
step compare-large-f32 3600 "${compare[@]}" --size large --cases 8x1024 --tf32 --json "$results/compare-large-tf32.json"
step compare-large-bf16 3600 "${compare[@]}" --size large --cases 8x1024 --dtype bf16 --json "$results/compare-large-bf16.json"
cat "$results"/compare-*.out >"$results/tables.md" 2>/dev/null || true

echo "results in $results"
exit $failed
