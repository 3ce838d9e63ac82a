#!/usr/bin/env bash
# A run that is killed with all its processes, and resumed: the result has the same bytes as that of a run that was left alone.
#
#   examples/resume.sh [path to numalign]      (default: numalign on the PATH)
#
# Works in a temporary folder, which goes at the end.
set -euo pipefail

numalign=$(realpath "$(command -v "${1:-numalign}")")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
settings=(nn --no-eval --http off --workers 2 --num-epochs 30 --num-batches 20 --checkpoint-every 50)

"$numalign" --quiet launch "${settings[@]}" --run-id calm
echo "calm:   $(sha256sum <chk/calm.safetensors | cut -c 1-16)"

# A session of its own, so that one signal reaches launch, coordinator and workers. Slowed down, so that there is time to kill it.
setsid "$numalign" --quiet launch "${settings[@]}" --run-id rough --chaos slow=5 &
run=$!
until [ -e chk/rough/step-00000200.safetensors ]; do
    kill -0 "$run" || { echo "the run ended before it could be killed" >&2; exit 1; }
    sleep 0.05
done
kill -KILL -- "-$run"
wait "$run" 2>/dev/null || true
# The killed coordinator holds its run's folder until the system has cleared it away.
for _ in $(seq 100); do
    kill -0 -- "-$run" 2>/dev/null || break
    sleep 0.05
done
echo "killed: $(find chk/rough -name 'step-*' | sort | tail -n 1) is the newest checkpoint"

"$numalign" --quiet launch "${settings[@]}" --run-id rough --resume auto
echo "rough:  $(sha256sum <chk/rough.safetensors | cut -c 1-16)"
"$numalign" verify chk/rough.safetensors
cmp chk/calm.safetensors chk/rough.safetensors
echo "the same bytes"
