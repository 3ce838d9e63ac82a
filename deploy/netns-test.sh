#!/usr/bin/env bash
# Several hosts on one machine: a coordinator and three workers, each in its own network namespace, joined by a bridge in a
# fifth one. The run has a join token. One link is cut and restored twice during the run: for a moment, then for longer than
# dead_after. The result must have the same bytes as an undisturbed run.
#
#   deploy/netns-test.sh [path to numalign]      (default: target/release/numalign, else target/debug/numalign)
#
# Needs root and iproute2. If they are missing, or namespaces are not allowed, it says why and exits 0.
# All traffic stays inside the namespaces. They and the temporary folder are removed when the script ends, however it ends.
set -euo pipefail
export LC_ALL=C

skip() {
    echo "skipped: $*"
    exit 0
}

die() {
    echo "failed: $*" >&2
    [ -f "$work/coordinator.log" ] && tail -n 40 "$work/coordinator.log" >&2
    exit 1
}

root=$(cd "$(dirname "$0")/.." && pwd)
numalign=${1:-}
if [ -z "$numalign" ]; then
    numalign=$root/target/release/numalign
    [ -x "$numalign" ] || numalign=$root/target/debug/numalign
fi
[ -x "$numalign" ] || { echo "failed: $numalign is not there; build it with cargo build --release" >&2; exit 1; }
numalign=$(realpath "$numalign")

[ "$(id -u)" -eq 0 ] || skip "network namespaces need root"
command -v ip >/dev/null 2>&1 || skip "there is no ip (iproute2)"

tag=na$$
switch=$tag-switch
work=$(mktemp -d)
pids=()

cleanup() {
    local pid host
    for pid in "${pids[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    for host in coordinator w1 w2 w3 switch; do
        ip netns del "$tag-$host" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

why=$(ip netns add "$switch" 2>&1) || skip "no network namespace can be made here: $why"
why=$(ip -n "$switch" link add br0 type bridge 2>&1) || skip "no bridge can be made here: $why"
ip -n "$switch" link set br0 up

# host NAME ADDRESS: a namespace with one interface, plugged into the bridge; its port there is called NAME.
host() {
    ip netns add "$tag-$1"
    why=$(ip -n "$switch" link add "$1" type veth peer name eth0 netns "$tag-$1" 2>&1) || skip "no veth pair can be made here: $why"
    ip -n "$switch" link set "$1" master br0
    ip -n "$switch" link set "$1" up
    ip -n "$tag-$1" address add "$2/24" dev eth0
    ip -n "$tag-$1" link set eth0 up
    ip -n "$tag-$1" link set lo up
}
host coordinator 10.77.0.1
host w1 10.77.0.2
host w2 10.77.0.3
host w3 10.77.0.4

# inside HOST COMMAND...: in that host's namespace.
inside() {
    local where=$tag-$1
    shift
    exec ip netns exec "$where" env HF_HUB_OFFLINE=1 RAYON_NUM_THREADS=1 "$@"
}

cd "$work"
settings=(nn --num-batches 20 --batch-size 24 --micro-batch-size 4 --checkpoint-every 100)

# alone NAME EPOCHS: a whole run on one host.
alone() {
    (inside coordinator "$numalign" launch "${settings[@]}" --num-epochs "$2" --no-eval --workers 2 --run-id "$1") 2>"$1.log" \
        || die "the run $1: $(tail -n 3 "$1.log")"
}

# Each worker below waits 8 ms per micro-batch, of which it has two or more a step: 24 seconds or more on any machine, so that
# both cuts lie inside the run.
epochs=75

started=$EPOCHREALTIME
alone undisturbed "$epochs"
seconds() { awk -v from="$1" -v to="$2" 'BEGIN { printf "%.2f", to - from }'; }
echo "undisturbed run on one host, $((epochs * 20)) steps: $(seconds "$started" "$EPOCHREALTIME") s"

head -c 24 /dev/urandom | base64 >token
printf 'not-the-token' >wrong

# Each line of the coordinator's log gets the time at which it came.
stamp() { while IFS= read -r line; do printf '%s %s\n' "$EPOCHREALTIME" "$line"; done; }
(inside coordinator "$numalign" coordinator "${settings[@]}" --num-epochs "$epochs" --listen 10.77.0.1:7400 \
    --token-file token --workers 3 --run-id hosts) \
    2> >(stamp >coordinator.log) &
coordinator=$!
pids+=("$coordinator")
worker=()
for name in w1 w2 w3; do
    (inside "$name" env NUMALIGN_INTERNAL_FAULTS=slow=8 "$numalign" worker --coordinator http://10.77.0.1:7400 --token-file token) \
        2>"$name.log" &
    worker+=("$!")
    pids+=("$!")
done

# first WORDS AFTER: when the first line with WORDS came, not before the time AFTER; nothing when none did.
first() { awk -v words="$1" -v after="$2" '$1 >= after && index($0, words) { print $1; exit }' coordinator.log; }
# await WORDS AFTER SECONDS: prints that time as soon as there is one.
await() {
    local until=$((SECONDS + $3)) at
    while at=$(first "$1" "$2"); [ -z "$at" ]; do
        kill -0 "$coordinator" 2>/dev/null || die "the run ended before it said \"$1\": its log is above"
        [ "$SECONDS" -lt "$until" ] || die "no \"$1\" within $3 s"
        sleep 0.02
    done
    echo "$at"
}
plug() { ip -n "$switch" link set w2 "$1"; }

await "| 3 workers" 0 120 >/dev/null
if (inside w3 "$numalign" worker --coordinator http://10.77.0.1:7400 --token-file wrong) 2>wrong.log; then
    die "a wrong token was let in"
fi
grep -q "join token is not this run's" wrong.log || die "a wrong token was not refused in words: $(cat wrong.log)"

plug down
sleep 0.7
healed=$EPOCHREALTIME
plug up
next=$(await "epoch" "$healed" 60)
echo "link cut for 0.7 s: the next epoch's line came $(seconds "$healed" "$next") s after the link was healed"

cut=$EPOCHREALTIME
plug down
noticed=$(await "no heartbeat" "$cut" 60)
recovered=$(await "begins at step" "$noticed" 60)
sleep 2
healed=$EPOCHREALTIME
plug up
joined=$(await "with 3 ranks" "$healed" 120)
echo "link cut for $(seconds "$cut" "$healed") s (dead_after 3 s): noticed after $(seconds "$cut" "$noticed") s," \
    "the other two go on $(seconds "$noticed" "$recovered") s later, the third is back $(seconds "$healed" "$joined") s after the link was healed"

wait "$coordinator" || die "the coordinator ended with $?"
for index in 0 1 2; do
    wait "${worker[$index]}" || die "worker $((index + 1)) ended with $?: $(tail -n 3 "w$((index + 1)).log")"
done
cmp chk/undisturbed.safetensors chk/hosts.safetensors || die "the bytes differ"
echo "three hosts, two cuts: the same bytes as the undisturbed run ($(sha256sum chk/hosts.safetensors | cut -c1-16))"
