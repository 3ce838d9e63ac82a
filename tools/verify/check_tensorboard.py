"""Read a run's event files with TensorBoard's own reader and compare every scalar with metrics.jsonl.

Usage: python check_tensorboard.py chk/RUN

Each curve must have strictly ascending steps and the very points of the record. Exit code 0: they agree; 1: they do not;
3: tensorboard is not installed.
"""
import json
import struct
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"tensorboard is not installed: {error}")
    sys.exit(3)

CURVES = ("step", "epoch", "evaluation", "solution")
PLACES = ("step", "epoch", "best_step")


def to_f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def recorded(path):
    curves = {}
    with open(path) as file:
        for line in file:
            record = json.loads(line)
            if record["kind"] not in CURVES:
                continue
            for name, value in record.items():
                if name not in PLACES and isinstance(value, (int, float)) and not isinstance(value, bool):
                    curves.setdefault(f"{record['kind']}/{name}", []).append((record["step"], to_f32(value)))
    return curves


def main(run):
    events = EventAccumulator(f"{run}/tensorboard", size_guidance={"scalars": 0})
    events.Reload()
    expected = recorded(f"{run}/metrics.jsonl")
    shown = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    wrong = []
    for tag in sorted(expected.keys() | shown.keys()):
        points = shown.get(tag, [])
        steps = [step for step, _ in points]
        if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
            wrong.append(f"{tag}: steps {steps} do not ascend")
        if points != expected.get(tag, []):
            wrong.append(f"{tag}: {points} is not {expected.get(tag, [])}")
    points = sum(len(points) for points in shown.values())
    print(f"{run}: {len(shown)} curves, {points} points, {len(events.Tags()['images'])} pictures")
    print("\n".join(wrong) if wrong else "every point is that of metrics.jsonl, and every curve ascends")
    return 1 if wrong or not shown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/")))
