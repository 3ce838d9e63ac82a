#!/usr/bin/env bash
# What a machine with an NVIDIA GPU has to show, within eight minutes, in one folder: one table of speed beside PyTorch, the
# self-test, and real runs with equal bytes (summary.md, table.json); every command's output is in logs.tgz beside them. It has been
# run on an H100 and an H200 (docs/gpu/), and is run over an emulated GPU by crates/cli/tests/emulated_gpu/bench.rs.
#
# Usage: bench/gpu.sh [FOLDER]     (default: gpu-results-<date>)
# NUMALIGN  a binary built with --features cuda; without it, one is built (that takes longer, and Rust and a C compiler).
# PYTHON    a python3, best with torch (CUDA) and transformers for the comparison (python3).
# SECONDS_AT_MOST  how long all of it may take (480); what is not begun by then is left out, and told.
# Needs the NVIDIA driver, NVRTC with CUDA's headers, and NCCL, all found where a toolkit or Python's packages have them.
# With Nsight Compute (ncu), it also lists the kernels of one step with their times.
# A step that fails is told and does not stop the others; the exit code is 1 if any failed.
# REHEARSAL=1: small sizes, PyTorch on the CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
results=${1:-gpu-results-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$results"
results=$(cd "$results" && pwd)
logs=$results/logs
mkdir -p "$logs"
python=${PYTHON:-python3}
rehearsal=${REHEARSAL:-}
failed=0
if [ -n "$rehearsal" ]; then most=3600; else most=${SECONDS_AT_MOST:-480}; fi

# step NAME SECONDS COMMAND...: runs it with a limit, or with what is left of the whole; keeps what it says.
step() {
    local name=$1 seconds=$2 code
    shift 2
    local left=$((most - SECONDS))
    # The emulated GPU is slow.
    [ -n "$rehearsal" ] && seconds=$((seconds * 10))
    [ "$seconds" -gt "$left" ] && seconds=$left
    if [ "$seconds" -le 1 ]; then
        echo "== $name: no time is left"
        failed=1
        return
    fi
    local since=$SECONDS
    timeout --kill-after=10 "$seconds" "$@" >"$logs/$name.out" 2>"$logs/$name.err"
    code=$?
    if [ "$code" -eq 0 ]; then
        echo "== $name: ok, $((SECONDS - since)) s"
    else
        echo "== $name: FAILED (exit code $code), $((SECONDS - since)) s; see $name.err in $results/logs.tgz"
        tail -n 5 "$logs/$name.err" | sed 's/^/   /'
        failed=1
    fi
}

if [ -n "${NUMALIGN:-}" ]; then
    binary=$(realpath "$NUMALIGN")
else
    cargo build --release --features cuda || exit 1
    binary=$root/target/release/numalign
    SECONDS=0
fi
nvidia-smi >"$logs/nvidia-smi.out" 2>&1 || true

step doctor 60 "$binary" doctor
if [ -n "$rehearsal" ]; then
    table=(--cases small:2x1,small:2x5 --steps 2 --model demo --device cpu --matrix-rows 16)
    settings=(--model-name demo --num-epochs 2 --num-batches 4 --batch-size 8 --micro-batch-size 4)
else
    table=()
    settings=(--model-name synthetic:small --num-epochs 2 --num-batches 20 --batch-size 16 --micro-batch-size 4)
fi

# The promise first: runs on GPT-2 small's shapes in f32 and bf16, and one of stage mixed, by one worker, by one worker again, with
# NCCL, by two workers, and by two of which one is killed: equal in bytes. Two ranks share the GPU where there is only one; NCCL
# allows that from 2.30 on, otherwise they add over gRPC.
work=$logs/runs
mkdir -p "$work"
launch() { # RUN STAGE MORE...
    local run=$1 stage=$2
    shift 2
    step "run-$run" 120 env -C "$work" NCCL_MULTI_RANK_GPU_ENABLE=1 "$binary" launch "$stage" --seed 1 --no-eval --device cuda --run-id "$run" "$@"
}
same() { # RUN RUN: equal in bytes
    step "same-$1-$2" 10 cmp "$work/chk/$1.safetensors" "$work/chk/$2.safetensors"
}
for dtype in f32 bf16; do
    launch "$dtype" nn "${settings[@]}" --dtype $dtype --workers 1 --collective grpc
    launch "$dtype-again" nn "${settings[@]}" --dtype $dtype --workers 1 --collective grpc
    same "$dtype" "$dtype-again"
done
launch nccl nn "${settings[@]}" --workers 1 --collective nccl
same f32 nccl
launch two nn "${settings[@]}" --workers 2
same f32 two
launch killed nn "${settings[@]}" --workers 2 --chaos seed=1,kill=400ms,kills=1,slow=20
same f32 killed
mixed=(--model-name demo --num-epochs 2 --num-batches 10 --batch-size 16 --micro-batch-size 4)
launch mixed mixed "${mixed[@]}" --workers 1
launch mixed-two mixed "${mixed[@]}" --workers 2
same mixed mixed-two

step selftest 150 "$binary" selftest --device cuda --quick

# Speed beside PyTorch, then where the time of a step goes.
profiler=0
if command -v ncu >/dev/null 2>&1 && [ -z "$rehearsal" ]; then profiler=1; fi
reserve=$((profiler ? 65 : 15))
step table 3600 "$python" bench/gpu_table.py --binary "$binary" --json "$results/table.json" --seconds $((most - SECONDS - reserve)) "${table[@]}"
if [ "$profiler" -eq 1 ]; then
    for shape in 8x128 8x1024; do
        step "kernels-$shape" 45 "$python" bench/gpu_kernels.py --binary "$binary" --shape "$shape"
    done
fi

{
    echo "numalign on a GPU, $(date +%F)"
    echo
    "$binary" --version
    sed -n 's/^ *\(ok\|warning\|failure\).*GPU.*/&/p' "$logs/doctor.out"
    echo
    cat "$logs/table.out"
    echo
    cat "$logs/selftest.out"
    for kernels in "$logs"/kernels-*.out; do
        [ -e "$kernels" ] && echo && cat "$kernels"
    done
} >"$results/summary.md" 2>/dev/null
# A few files are easier to bring home from a lent machine than fifty.
tar -czf "$results/logs.tgz" -C "$results" logs && rm -r "$logs"
echo "$results/summary.md after $SECONDS s"
exit $failed
