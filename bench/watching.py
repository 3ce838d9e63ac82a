#!/usr/bin/env python3
"""What it costs the coordinator to be watched: its processor time per step, with and without.

Usage: bench/watching.py [--binary target/release/numalign] [--pairs 5] [--epochs 300]

Each pair is two runs of stage nn on the demo model with two workers. One coordinator serves its page, an event-stream client
reads all it tells, and /metrics is asked every second. The other one serves no page. The order changes from pair to pair, so
that a machine that slows down favours neither. Prints each pair, and the ratio of the medians.
"""
import argparse
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

STEPS_PER_EPOCH = 100


def follow(url):
    """Reads the event stream to its end."""
    with urllib.request.urlopen(f"{url}/api/events", timeout=600) as stream:
        while stream.read1(1 << 16):
            pass


def scrape(url, over):
    """Asks for the metrics every second."""
    count = 0
    while not over.wait(1):
        with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
            answer.read()
        count += 1
    return count


def run(binary, epochs, watched):
    """Seconds of processor time and the largest memory (KiB) of one run's coordinator."""
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "coordinator", "nn", "--listen", "127.0.0.1:0", "--run-id", "cost", "--workers", "2"]
        command += ["--num-epochs", str(epochs), "--num-batches", str(STEPS_PER_EPOCH), "--micro-batch-size", "4"]
        command += ["--min-workers", "2"]
        command += ["--http", "127.0.0.1:0"] if watched else ["--http", "off"]
        environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
        pipes = {"cwd": folder, "stderr": subprocess.PIPE, "text": True, "env": environment}
        coordinator = subprocess.Popen(command, **pipes)
        lines = []
        address = page = None
        for line in coordinator.stderr:
            lines.append(line)
            address = address or (m.group(1) if (m := re.search(r"listening on (\S+);", line)) else None)
            page = page or (m.group(1) if (m := re.search(r"watch it on (http://[^/]+)/", line)) else None)
            if address and (page or not watched):
                break
        else:
            raise SystemExit("the coordinator ended early:\n" + "".join(lines))
        threading.Thread(target=coordinator.stderr.read, daemon=True).start()
        over = threading.Event()
        if watched:
            for work in (lambda: follow(page), lambda: scrape(page, over)):
                threading.Thread(target=quietly, args=(work,), daemon=True).start()
        worker = [binary, "worker", "--coordinator", f"http://{address}"]
        quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        workers = [subprocess.Popen(worker, **quiet) for _ in range(2)]
        _, status, usage = os.wait4(coordinator.pid, 0)
        over.set()
        for process in workers:
            process.wait()
        if status != 0:
            raise SystemExit(f"the coordinator ended with {status}")
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def quietly(work):
    """The run ends while somebody still reads."""
    try:
        work()
    except OSError:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--binary", default=str(root / "target/release/numalign"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=300, help=f"of {STEPS_PER_EPOCH} steps")
    options = parser.parse_args()
    binary = str(Path(options.binary).resolve())
    steps = options.epochs * STEPS_PER_EPOCH
    figures = {True: [], False: []}
    for pair in range(options.pairs):
        for watched in (False, True) if pair % 2 == 0 else (True, False):
            since = time.monotonic()
            seconds, memory = run(binary, options.epochs, watched)
            figures[watched].append((1e6 * seconds / steps, memory / 1024))
            name = "watched" if watched else "alone"
            print(f"pair {pair + 1}: {name:8} {1e6 * seconds / steps:7.1f} µs/step  {memory / 1024:6.1f} MiB  "
                  f"{time.monotonic() - since:5.1f} s", flush=True)
    ratios = [watched[0] / alone[0] for watched, alone in zip(figures[True], figures[False])]
    both = [statistics.median(figure[0] for figure in figures[watched]) for watched in (True, False)]
    more = statistics.median(watched[1] - alone[1] for watched, alone in zip(figures[True], figures[False]))
    print(f"processor time, watched over alone: {both[0] / both[1]:.3f} of the medians; pairs "
          + " ".join(f"{ratio:.3f}" for ratio in ratios) + f"; memory {more:+.1f} MiB")


if __name__ == "__main__":
    main()
