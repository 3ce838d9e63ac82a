"""What was measured, beside the formulas: the tables of docs/SCALING.md and the panels of its figure. Used by scaling.py."""

import scaling_figure as draw
import scaling_model as model

# Samples of a step in the sweeps over model size and positions; micro-batches of the sweep over workers.
BATCH, MICRO_BATCHES, MOST_WORKERS = 8, 4, 4
# Positions per sample in the predictions.
POSITIONS = 16


def shape(point):
    return (*model.SIZES[point["size"]], point["batch"], point["positions"])


def fitted(measured):
    """Constants of the formulas, from what was measured."""
    crowds = [(model.coordinator_features(c["workers"], model.row_bytes(c["hidden"])), c) for c in measured["crowds"]]
    heard = [(features, c["cpu_ms"]) for features, c in crowds if c["cpu_ms"] > 0]
    return {
        "step": model.fit([(model.step_features(*shape(p)), p["ms"]) for p in measured["points"]]),
        # Of one thread: a fixed part, and one per sample.
        "part": model.fit([([1.0, float(p["batch"])], p["ms"]) for p in measured["parts"]]),
        "loopback": model.fit([(features, c["p50_ms"]) for features, c in crowds]),
        "busy": model.fit(heard) if len(heard) >= 3 else [0.0, 0.0, 0.0],
    }


def predicted_launch(measured, constants, workers):
    """ms/step of `launch` on this machine: the workers' shares on its cores, and the coordinator's step on loopback."""
    size = measured["base"]
    compute = lambda share: constants["part"][0] + constants["part"][1] * BATCH * share
    held = model.machine_ms(compute, model.shares(MICRO_BATCHES, workers), measured["cores"])
    row = model.row_bytes(model.SIZES[size][1]) * MICRO_BATCHES / workers
    return held + model.coordinator_ms(constants["loopback"], workers, row)


def error(predicted, seen):
    """The prediction's, in per cent of what was seen."""
    return f"{100 * (predicted - seen) / seen:+.0f} %"


# --- tables ------------------------------------------------------------------------------------------------------------


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def bytes_text(count):
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:.0f} B"


def prediction_table(constants):
    rows = []
    for size, samples, per_worker in (("small", 8, 1), ("small", 8, 8), ("small", 64, 1), ("xl", 8, 1), ("7B", 8, 1)):
        for workers in (8, 64, 1000):
            for collective in ("grpc", "nccl"):
                p = model.predict(workers, collective, size, POSITIONS, samples, per_worker, constants["busy"])
                rows.append(
                    [
                        size,
                        f"{per_worker}×{samples}",
                        f"{workers:,}",
                        collective,
                        f"{p['compute_ms']:.1f}",
                        f"{p['reduce_ms']:.2f}",
                        f"{p['step_ms']:.1f}",
                        f"{p['samples_per_s']:,.0f}",
                        f"{100 * p['efficiency']:.0f} %",
                        bytes_text(p["coordinator_bytes"]),
                        bytes_text(p["worker_bytes"]),
                    ]
                )
    return table(
        [
            "model",
            "micro-batches × samples per GPU",
            "GPUs",
            "collective",
            "compute ms",
            "reduction ms",
            "step ms",
            "samples/s",
            "efficiency",
            "at the coordinator, per step",
            "sent by a GPU, per step",
        ],
        rows,
    )


def tables(measured, constants):
    rows = [
        [
            p["size"],
            p["batch"],
            p["positions"],
            f"{p['ms']:.1f}",
            f"{p['least']:.1f}–{p['most']:.1f}",
            f"{p['peak_mib']:.0f}",
            f"{model.cpu_ms(constants['step'], *shape(p)):.1f}",
            error(model.cpu_ms(constants["step"], *shape(p)), p["ms"]),
        ]
        for p in measured["points"]
    ]
    r = measured["rounded"]
    rows.append(
        [
            f"{r['size']}, bf16",
            r["batch"],
            r["positions"],
            f"{r['ms']:.1f}",
            f"{r['least']:.1f}–{r['most']:.1f}",
            f"{r['peak_mib']:.0f}",
            "",
            "",
        ]
    )
    made = {"steps": table(["model", "batch", "positions", "ms/step", "range", "peak MiB", "formula", "error"], rows)}
    made["workers"] = table(
        ["workers", "ms/step", "range", "predicted", "error"],
        [
            [
                w["workers"],
                f"{w['ms']:.1f}",
                f"{w['least']:.1f}–{w['most']:.1f}",
                f"{predicted_launch(measured, constants, w['workers']):.1f}",
                error(predicted_launch(measured, constants, w["workers"]), w["ms"]),
            ]
            for w in measured["workers"]
        ],
    )
    rows = []
    for c in measured["crowds"]:
        row = model.row_bytes(c["hidden"])
        held = [model.coordinator_ms(constants[name], c["workers"], row) for name in ("loopback", "busy")]
        rows.append(
            [
                f"{c['workers']:,}",
                c["hidden"],
                f"{c['p50_ms']:.2f}",
                f"{held[0]:.2f}",
                error(held[0], c["p50_ms"]),
                f"{c['cpu_ms']:.2f}",
                f"{held[1]:.2f}",
                error(held[1], c["cpu_ms"]) if c["cpu_ms"] else "",
            ]
        )
    made["coordinator"] = table(
        ["workers", "hidden size", "step, median ms", "formula", "error", "coordinator's processor ms", "formula", "error"],
        rows,
    )
    made["bytes"] = "Not measured: it takes root and `unshare`."
    if measured["bytes"]:
        made["bytes"] = table(
            ["workers", "hidden size", "by the protocol", "on the wire", "error", "more, per worker"],
            [
                [
                    b["workers"],
                    b["hidden"],
                    bytes_text(on_paper(b)),
                    bytes_text(b["bytes"]),
                    error(on_paper(b), b["bytes"]),
                    f"{(b['bytes'] - on_paper(b)) / b['workers']:.0f} B",
                ]
                for b in measured["bytes"]
            ],
        )
    step_constants, part, loopback, busy = (constants[name] for name in ("step", "part", "loopback", "busy"))
    inverse = lambda c: f"{1e3 / c / 1e9:.1f}" if c else "unbounded"
    made["constants"] = table(
        ["constant", "value", "from"],
        [
            ["t0, of a step", f"{step_constants[0]:.2f} ms", "`bench step`"],
            ["B, weights read", f"{inverse(step_constants[1])} GB/s", "`bench step`"],
            ["R, arithmetic", f"{inverse(step_constants[2])} GFLOP/s", "`bench step`"],
            ["a, of a worker's pass, one thread", f"{part[0]:.2f} ms", "`bench step`, one thread"],
            ["s, for each sample, one thread", f"{part[1]:.2f} ms", "`bench step`, one thread"],
            [
                "q0, q1, q2 of a loopback step",
                f"{loopback[0]:.2f} ms, {1e3 * loopback[1]:.1f} µs, {1e9 * loopback[2]:.0f} ms/GB",
                "`bench coordinator`, median",
            ],
            [
                "k0, k1, k2 of the coordinator's processor",
                f"{busy[0]:.2f} ms, {1e3 * busy[1]:.1f} µs, {1e9 * busy[2]:.0f} ms/GB",
                "`bench coordinator`, processor time",
            ],
        ],
    )
    made["assumed"] = table(
        ["assumed", "value", "source"],
        [[name, f"{value:g} {unit}", source] for name, (value, unit, source) in model.ASSUMED.items()],
    )
    made["predictions"] = prediction_table(constants)
    made["machine"] = f"Measured on {measured['machine']}, median of {measured['rounds']} rounds."
    return made


def on_paper(point):
    """Of `bench coordinator`: one micro-batch of one sample for each worker."""
    return sum(model.protocol_bytes(point["workers"], point["workers"], 1, point["hidden"]).values())


def panels(measured, constants):
    held = lambda p: model.cpu_ms(constants["step"], *shape(p))
    base, points = measured["base"], measured["points"]
    weights = lambda p: 12 * model.SIZES[p["size"]][0] * model.SIZES[p["size"]][1] ** 2
    sizes = sorted((p for p in points if p["batch"] == BATCH and p["positions"] == 1), key=weights)
    positions = sorted((p for p in points if p["size"] == base and p["batch"] == BATCH), key=lambda p: p["positions"])
    batches = sorted((p for p in points if p["size"] == base and p["positions"] == 1), key=lambda p: p["batch"])
    row = model.row_bytes(768)
    crowds = [c for c in measured["crowds"] if c["hidden"] == 768] or measured["crowds"]
    counts = [1, 8, 64, 256, 1000]

    def both(title, x_label, list_of, x):
        return {
            "title": title,
            "x_label": x_label,
            "y_label": "ms/step",
            "ticks": sorted({x(p) for p in list_of}) if x is not weights else None,
            "series": [
                ("measured", draw.MEASURED, [(x(p), p["ms"]) for p in list_of]),
                ("formula", draw.FORMULA, [(x(p), held(p)) for p in list_of]),
            ],
        }

    made = [
        both(f"Model size ({BATCH} samples, 1 position)", "weights in the blocks", sizes, weights),
        both(f"Positions ({base}, {BATCH} samples)", "positions per sample", positions, lambda p: p["positions"]),
        both(f"Batch ({base}, 1 position)", "samples per step", batches, lambda p: p["batch"]),
        {
            "title": f"Workers on {measured['cores']} cores ({base}, {BATCH * MICRO_BATCHES} samples)",
            "x_label": "workers, one thread each",
            "y_label": "ms/step",
            "log_x": False,
            "log_y": False,
            "ticks": list(range(MOST_WORKERS + 1)),
            "series": [
                ("measured", draw.MEASURED, [(w["workers"], w["ms"]) for w in measured["workers"]]),
                (
                    "predicted",
                    draw.FORMULA,
                    [(w["workers"], predicted_launch(measured, constants, w["workers"])) for w in measured["workers"]],
                ),
            ],
        },
        {
            "title": "Coordinator (simulated workers, d = 768)",
            "x_label": "workers",
            "y_label": "ms/step",
            "ticks": sorted({c["workers"] for c in crowds}),
            "series": [
                ("median step", draw.MEASURED, [(c["workers"], c["p50_ms"]) for c in crowds]),
                (
                    "formula",
                    draw.FORMULA,
                    [(c["workers"], model.coordinator_ms(constants["loopback"], c["workers"], row)) for c in crowds],
                ),
            ],
        },
    ]
    lines, notes = [], []
    for size in ("small", "xl"):
        for collective, look in (("grpc", draw.OTHER), ("nccl", draw.ASSUMED)):
            times = [model.predict(n, collective, size, POSITIONS, BATCH, 1, constants["busy"])["step_ms"] for n in counts]
            lines.append((collective if size == "small" else "", look, list(zip(counts, times))))
        notes.append((counts[0], times[0], size))
    made.append(
        {
            "title": f"GPUs: assumed, not measured ({BATCH}×{POSITIONS} each)",
            "x_label": "GPUs",
            "y_label": "ms/step",
            "ticks": counts,
            "series": lines,
            "notes": notes,
        }
    )
    return made
