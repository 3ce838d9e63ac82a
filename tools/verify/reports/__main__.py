"""Tries the situations of public bug reports of neighbouring tools on the program, and prints a table of what happens now.

Usage: python -m reports [--program PATH] [--rows 1,2,35]      (in tools/verify; needs torch, transformers, safetensors)

Rows with a number are those of the first table of reports, rows with a name are further ones. Exit code 0: every row does
what it should, or is skipped in words because this machine cannot try it; 1: a row does not. Root can try all of them
(mounts, network namespaces, other users, cgroups).
"""
import argparse
import os
import signal
import sys
import time

from . import trial


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(trial.ROOT / "target/release/numalign"))
    parser.add_argument("--rows", help="rows, separated by commas; all by default")
    args = parser.parse_args()
    trial.PROGRAM = args.program
    # `nohup` lets children ignore the signal that row 28 sends.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    from . import files, further, machines, models  # noqa: F401  (they register their rows)
    chosen = args.rows.split(",") if args.rows else [str(key) for key in sorted(trial.ROWS, key=order)]
    failed = 0
    print("| row | situation | verdict | what happens now |\n|---|---|---|---|")
    for key in chosen:
        title, function = next(entry for known, entry in trial.ROWS.items() if str(known) == key)
        attempt, start = trial.Trial(), time.monotonic()
        try:
            verdict, said = "good", function(attempt)
        except trial.Skipped as why:
            verdict, said = "skipped", str(why)
        except trial.Failed as why:
            verdict, said, failed = "FAILED", str(why), failed + 1
        except Exception as error:  # What a row did not foresee fails it, not those after it.
            verdict, said, failed = "FAILED", f"{type(error).__name__}: {error}", failed + 1
        finally:
            attempt.close()
        cell = " ".join(str(said).replace("|", "\\|").split())
        print(f"| {key} | {title} | {verdict} | {cell} |", flush=True)
        print(f"row {key}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    return 1 if failed else 0


def order(key):
    """Numbers first, in their order."""
    return (0, key, "") if isinstance(key, int) else (1, 0, key)


if __name__ == "__main__":
    sys.exit(main())
