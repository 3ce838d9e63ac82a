"""What a training step costs as work grows: the formulas of docs/SCALING.md, as functions. Used by scaling.py.

Times are milliseconds, sizes bytes, rates per second. The formulas hold no constants of their own: those come from measurements
(`fit_step`, `fit_coordinator`) or stand in ASSUMED with their sources.

>>> row_bytes(768)
9224
>>> step = protocol_bytes(workers=8, micro_batches=8, samples=8, hidden=768)
>>> step["rows up"], step["sums down"]
(73792, 73792)
>>> round(nccl_ms(2, 9224, ASSUMED), 4), nccl_ms(1, 9224, ASSUMED)
(0.0079, 0.0)
>>> nccl_ms(1000, 9224, ASSUMED) > nccl_ms(64, 9224, ASSUMED) > nccl_ms(8, 9224, ASSUMED)
True
"""

import math

# Layers and hidden size.
SIZES = {"demo": (4, 192), "small": (12, 768), "medium": (24, 1024), "large": (36, 1280), "xl": (48, 1600), "7B": (32, 4096)}

# Name: (value, unit, source). Nothing of this was measured by this project.
ASSUMED = {
    "gpu f32 rate": (
        66.9e12,
        "FLOP/s",
        "H100 SXM5, FP32 vector: glennklockwood.com/garden/processors/h100, after NVIDIA's data sheet",
    ),
    "gpu share": (
        0.4,
        "of that rate",
        "a guess at what plain Burn kernels reach in f32; with TF32 (494.7e12, same page) it may be higher",
    ),
    "gpu memory": (3.35e12, "byte/s", "H100 SXM5, HBM3: same page"),
    "gpu memory share": (0.7, "of that rate", "a guess for large matrices read once"),
    "kernels per block": (100, "launches", "a guess: some 30 plain operations forwards, twice as many backwards, not fused"),
    "kernel launch": (5e-3, "ms", "4 to 6 us, measured on an RTX 5070 Ti: susun-blog.com/blog/pegainfer-3-cuda-graph"),
    "gpus per host": (8, "GPUs", "DGX and HGX boards"),
    "nccl base": (6.7e-3, "ms", "6.6 to 6.8 us, protocol LL: NVIDIA/nccl#1334, src/graph/tuning.cc"),
    "nccl hop in a host": (0.6e-3, "ms", "NVLink, LL: same place"),
    "nccl hop between hosts": (5.0e-3, "ms", "network, LL: same place"),
    "nccl rate in a host": (200e9, "byte/s", "a guess: half of NVLink's 450e9 in one direction"),
    "nccl rate between hosts": (40e9, "byte/s", "a guess: 80 % of one 400 Gbit/s adapter for each GPU"),
    "host copy": (50e9, "byte/s", "a guess: PCIe 5.0 x16 has 64e9; rows are staged through host memory, there and back"),
    "host sum": (5e9, "byte/s", "a guess: every rank adds all rows in order on one core"),
    "round trip": (0.1, "ms", "a guess for TCP between hosts of one cluster"),
}


def row_bytes(hidden):
    """A gradient row: the 3d+1 trainable numbers and the loss, f32."""
    return 4 * (3 * hidden + 2)


# --- compute -----------------------------------------------------------------------------------------------------------


def step_flops(layers, hidden, samples, positions):
    """Floating-point operations of forward and backward to the embeddings; there is no weight gradient.

    A block has 12 d^2 weights, each used by one multiplication and one addition per position and direction; with one position
    softmax is 1, and the query's and key's 2 d^2 are not computed. Attention's own products, two forwards and four backwards,
    take 2 P d operations each per position, half of them beyond the causal mask: 6 P d in all.
    """
    weights = (10 if positions == 1 else 12) * hidden**2
    attention = 0 if positions == 1 else 6 * positions * hidden
    return layers * samples * positions * (4 * weights + attention)


def weight_traffic(layers, hidden, positions, bytes_each=4):
    """Bytes of weights that a step reads: every block's once in each direction."""
    return 2 * (10 if positions == 1 else 12) * layers * hidden**2 * bytes_each


def step_features(layers, hidden, samples, positions, bytes_each=4):
    """What the step's time is linear in: one, the weights' traffic, the arithmetic."""
    return [
        1.0,
        float(weight_traffic(layers, hidden, positions, bytes_each)),
        float(step_flops(layers, hidden, samples, positions)),
    ]


def cpu_ms(constants, *shape):
    """`constants`: ms, ms per byte, ms per operation, as `fit` returns them for `step_features`."""
    return sum(c * x for c, x in zip(constants, step_features(*shape)))


def gpu_ms(layers, hidden, samples, positions, assumed):
    """One GPU's compute: launches, then the slower of reading the weights and the arithmetic."""
    value = {name: entry[0] for name, entry in assumed.items()}
    launches = layers * value["kernels per block"] * value["kernel launch"]
    reading = weight_traffic(layers, hidden, positions) / (value["gpu memory"] * value["gpu memory share"])
    arithmetic = step_flops(layers, hidden, samples, positions) / (value["gpu f32 rate"] * value["gpu share"])
    return max(launches, 1e3 * max(reading, arithmetic))


def machine_ms(compute, shares, cores):
    """Workers of one thread each on `cores` cores, which are shared fairly among those that still compute: until the last is done.

    >>> machine_ms(lambda m: 10.0 * m, [2, 2], cores=2), machine_ms(lambda m: 10.0 * m, [1, 1, 1, 1], cores=2)
    (20.0, 20.0)
    >>> machine_ms(lambda m: 10.0 * m, [2, 1, 1], cores=2)
    25.0
    """
    left = sorted(compute(share) for share in shares if share)
    elapsed = 0.0
    while left:
        shortest = left[0]
        elapsed += shortest * max(1.0, len(left) / cores)
        left = [work - shortest for work in left[1:]]
    return elapsed


def shares(micro_batches, workers):
    """How many micro-batches each of `workers` gets when all are equally fast.

    >>> shares(4, 3), shares(2, 3)
    ([2, 1, 1], [1, 1, 0])
    """
    whole, more = divmod(micro_batches, workers)
    return [whole + (rank < more) for rank in range(workers)]


# --- network -----------------------------------------------------------------------------------------------------------


def varint(number):
    return max(1, math.ceil(number.bit_length() / 7))


def field(size):
    """A length-delimited field of proto/numalign.proto: tag, length, content."""
    return 1 + varint(size) + size


GENERATION = field(11 + 2)
# gRPC's five bytes, HTTP/2's frame header, and the digest behind each message.
WRAPPING = 5 + 9 + 2 + 16
# Micro-batch, digest, and the tags and lengths around a row.
ROW_WRAPPING = 3 + 34
# Units and MAC.
COMMITTED = field(3 + 34)


def protocol_bytes(workers, micro_batches, samples, hidden, collective="grpc"):
    """Bytes of one step at the coordinator's port, by kind of message, after proto/numalign.proto; `samples` of a micro-batch.

    TCP and IP, HTTP/2's window updates and heartbeats come on top: scaling.py counts them.
    """
    row, ranks = row_bytes(hidden), min(workers, micro_batches)
    sample = field(4 + 9 + 9)
    work = ranks * WRAPPING + micro_batches * field(3 + 3 + samples * sample)
    report = field(GENERATION + 3 + 5 + 34 + 14)
    if collective == "grpc":
        return {
            "work down": work,
            "rows up": micro_batches * row,
            "reports and credits up": ranks * (report + 2 + 3),
            "sums down": ranks * row,
            "committed down": ranks * COMMITTED,
            "wrapping": ranks * (2 * WRAPPING + field(3 + field(row)) - row)
            + micro_batches * (field(field(row) + ROW_WRAPPING) - row),
        }
    return {
        "work down": work,
        "credits up": ranks * (WRAPPING + 2),
        "reports up": ranks * (report + 34 + WRAPPING) + micro_batches * field(ROW_WRAPPING),
        "state up": field(32 + 12 * (3 * hidden + 1)),
        "committed down": workers * (WRAPPING + COMMITTED),
    }


def nccl_wire_bytes(workers, buffer):
    """Bytes that each GPU sends in an all-reduce of `buffer` bytes: 2 (N-1)/N of it, ring or tree."""
    return 0 if workers < 2 else 2 * (workers - 1) / workers * buffer


def nccl_ms(workers, buffer, assumed):
    """An all-reduce: NCCL's own latency model (tuning.cc), the better of ring and tree, and the wire."""
    if workers < 2:
        return 0.0
    value = {name: entry[0] for name, entry in assumed.items()}
    hosts = math.ceil(workers / value["gpus per host"])
    near, far = value["nccl hop in a host"], value["nccl hop between hosts"]
    steps, far_steps = 2 * (workers - 1), 2 * (hosts - 1)
    ring = (steps - far_steps) * near + far_steps * far
    tree = 2 * ((workers / hosts - 1) * near + math.log2(hosts) * far)
    rate = value["nccl rate in a host"] if hosts == 1 else value["nccl rate between hosts"]
    return value["nccl base"] + min(ring, tree) + 1e3 * nccl_wire_bytes(workers, buffer) / rate


# --- coordinator and the whole step -------------------------------------------------------------------------------------


def coordinator_features(workers, row):
    """What the coordinator's time per step is linear in: one, its workers, the bytes of their rows."""
    return [1.0, float(workers), float(workers * row)]


def coordinator_ms(constants, workers, row):
    return sum(c * x for c, x in zip(constants, coordinator_features(workers, row)))


def predict(workers, collective, size, positions, samples, per_worker, busy, assumed=None):
    """A step of `workers` GPUs, each with `per_worker` micro-batches of `samples` samples.

    `busy`: the coordinator's processor time, as fitted from `numalign bench coordinator`. Returns ms and bytes.
    """
    assumed = assumed or ASSUMED
    layers, hidden = SIZES[size]
    micro_batches, row = workers * per_worker, row_bytes(hidden)
    compute = gpu_ms(layers, hidden, samples * per_worker, positions, assumed)
    port = sum(protocol_bytes(workers, micro_batches, samples, hidden, collective).values())
    value = {name: entry[0] for name, entry in assumed.items()}
    if collective == "grpc":
        # Rows wait for the last one: what the coordinator does with them is on the step's path.
        reduce = value["round trip"] + coordinator_ms(busy, workers, per_worker * row)
        step, each = compute + reduce, (per_worker + 1) * row
    else:
        buffer = micro_batches * row
        reduce = nccl_ms(workers, buffer, assumed) + 1e3 * (2 * buffer / value["host copy"] + buffer / value["host sum"])
        # Work and reports go past the step, but no faster than the coordinator handles them.
        step, each = max(compute + reduce, coordinator_ms(busy, workers, 0)), nccl_wire_bytes(workers, buffer)
    done = 1e3 * micro_batches * samples / step
    alone = 1e3 * per_worker * samples / compute
    return {
        "workers": workers,
        "collective": collective,
        "size": size,
        "compute_ms": compute,
        "reduce_ms": reduce,
        "step_ms": step,
        "samples_per_s": done,
        "efficiency": done / (workers * alone),
        "coordinator_bytes": port,
        "worker_bytes": each,
    }


# --- fitting -----------------------------------------------------------------------------------------------------------


def fit(points):
    """Constants c >= 0 with sum(c * features) = time, least squares of relative errors; `points`: (features, time).

    >>> [round(c, 6) for c in fit([([1, 2], 8.0), ([1, 4], 14.0), ([1, 10], 32.0)])]
    [2.0, 3.0]
    """
    kept = list(range(len(points[0][0])))
    while True:
        # Columns are scaled, so that bytes and operations do not spoil the elimination.
        scale = [max(abs(features[i] / time) for features, time in points) or 1.0 for i in kept]
        rows = [[features[i] / time / s for i, s in zip(kept, scale)] for features, time in points]
        normal = [
            [sum(r[i] * r[j] for r in rows) for j in range(len(kept))] + [sum(r[i] for r in rows)] for i in range(len(kept))
        ]
        solution = [c / s for c, s in zip(eliminate(normal), scale)]
        if min(solution) >= 0:
            constants = [0.0] * len(points[0][0])
            for i, c in zip(kept, solution):
                constants[i] = c
            return constants
        del kept[solution.index(min(solution))]


def eliminate(matrix):
    """Gauss with pivots; `matrix` has the right-hand side as its last column. A column without a pivot gets 0."""
    size = len(matrix)
    rows = [list(row) for row in matrix]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < 1e-12:
            rows[i] = [float(i == j) for j in range(size)] + [0.0]
            continue
        for r in range(size):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    return [rows[i][size] / rows[i][i] for i in range(size)]


if __name__ == "__main__":
    import doctest

    failed, tested = doctest.testmod()
    print(f"{tested} examples, {failed} failed")
    raise SystemExit(bool(failed))
