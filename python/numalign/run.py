"""Training from Python: starts ``numalign launch`` and follows it."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .binary import binary
from .checkpoint import Checkpoint
from .errors import NumalignError

if TYPE_CHECKING:
    import pandas

    from .model import NumberModel

#: Seconds between two looks at a run.
_LOOK = 0.2
#: Seconds that a run gets to write its checkpoint and end.
_GRACE = 60.0
#: Lines of the log that an error shows.
_SHOWN = 12

_running: weakref.WeakSet[Run] = weakref.WeakSet()


def launch(
    config: Mapping[str, Any] | None = None,
    *,
    folder: str | os.PathLike[str] = ".",
    wait: bool = True,
    evaluate: bool = True,
    progress: bool = True,
    **keys: Any,
) -> Run:
    """Trains on this machine: a coordinator and its workers, then the evaluation of the result.

    Args:
        config: Keys and values as in a configuration file, such as ``{"stage": "nn", "num_epochs": 20}``; nested keys
            as nested dictionaries (``{"dataset": {"file": "train.csv"}}``). Without ``run_id`` the run is called as its
            stage, or ``run``.
        folder: Where the run's ``chk/`` lies, and what paths in ``config`` are relative to.
        wait: Wait for the end, with a progress bar. Otherwise the run goes on in the background, until ``wait()`` is
            called or this Python process ends.
        evaluate: Evaluate the result on held-out samples at the end; see ``Run.report``.
        progress: Show the bar.
        keys: Further keys, such as ``num_epochs=20``; they come before those of ``config``.

    Returns:
        The run.

    Raises:
        NumalignError: The configuration is not valid, or the run failed.
        KeyboardInterrupt: After Ctrl-C; the run has written a checkpoint, and ``resume="auto"`` continues it.
    """
    run = Run({**(config or {}), **keys}, Path(folder), evaluate)
    if wait:
        run.wait(progress=progress)
    return run


class Run:
    """A training run in processes of its own. ``launch`` makes one.

    Attributes:
        run_id: Its name.
        folder: Where its checkpoints and ``metrics.jsonl`` lie.
        total_steps: Steps of the whole run.
        log: What it said so far, line by line.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, evaluate: bool = True) -> None:
        program = str(binary())
        self._temporary = tempfile.TemporaryDirectory(prefix="numalign-")
        file = Path(self._temporary.name) / "config.yaml"
        # JSON is YAML.
        file.write_text(json.dumps(_plain(config), allow_nan=False))
        more = [] if "run_id" in config else ["--run-id", str(config.get("stage", "run"))]
        known = _resolved(program, file, folder, more)
        self.run_id: str = known["run_id"]
        self.folder: Path = folder / "chk" / self.run_id
        self.total_steps: int = int(known["num_epochs"]) * int(known["num_batches"])
        self.log: list[str] = []
        self._result = folder / known["model_path_save"]
        self._stdout = tempfile.TemporaryFile()
        self._began = time.time()
        arguments = [program, "launch", "--config", str(file), *more, "--json"]
        # In a group of its own: the terminal's Ctrl-C reaches this process alone, which then ends the run in order.
        self._process = subprocess.Popen(
            arguments + ([] if evaluate else ["--no-eval"]),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=_drain, args=(self._process.stderr, self.log), daemon=True)
        self._reader.start()
        _running.add(self)

    def wait(self, progress: bool = True) -> Run:
        """Waits for the end, with a progress bar in the notebook or terminal.

        Returns:
            This run.

        Raises:
            NumalignError: The run failed.
            KeyboardInterrupt: After Ctrl-C; the run has ended in order by then.
        """
        bar = _bar(self) if progress and self.is_running else None
        try:
            while self.is_running:
                time.sleep(_LOOK)
                if bar is not None:
                    self._show(bar)
            if bar is not None:
                self._show(bar)
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            if bar is not None:
                bar.close()
        self._reader.join(timeout=5)
        code = self._process.returncode
        if code != 0:
            tail = "\n".join(self.log[-_SHOWN:])
            raise NumalignError(f"run {self.run_id} ended with code {code}\n{tail}")
        return self

    def stop(self) -> None:
        """Ends the run in order: it writes a checkpoint, from which ``resume="auto"`` continues."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            # The second request ends it at once.
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_GRACE)

    @property
    def is_running(self) -> bool:
        """Whether its processes have not ended yet."""
        return self._process.poll() is None

    @property
    def page(self) -> str | None:
        """The address of the page that shows the run while it goes on; None with ``http="off"``."""
        said = "watch it on "
        lines = [line.removeprefix(said) for line in list(self.log) if line.startswith(said)]
        return lines[-1] if lines else None

    def metrics(self) -> pandas.DataFrame:
        """What ``metrics.jsonl`` says so far: a row for each record, a column for each key (``kind``, ``step``, …)."""
        import pandas

        return pandas.DataFrame(self._records())

    @property
    def report(self) -> dict[str, Any] | None:
        """The closing evaluation: errors on held-out samples, in value units and in percent of the range.

        None while the run goes on, or where it was not asked for.
        """
        if self.is_running:
            return None
        self._stdout.seek(0)
        text = self._stdout.read().decode()
        return json.loads(text) if text.strip() else None

    @property
    def checkpoint(self) -> Path:
        """The final file; before it is written, the newest checkpoint.

        Raises:
            NumalignError: There is none yet.
        """
        if not self.is_running and self._process.returncode == 0:
            return self._result
        files = sorted(self.folder.glob("step-*.safetensors"))
        if not files:
            raise NumalignError(f"run {self.run_id} has not written a checkpoint yet")
        return files[-1]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the smallest error, ``{"step": 200, "mae": 0.1, …}``; None without ``eval_every``."""
        return Checkpoint.read(self.checkpoint).best

    def model(self, best: bool = False) -> NumberModel:
        """The trained model, for predictions; with ``best`` that of the best evaluation."""
        from .model import NumberModel

        return NumberModel.from_checkpoint(self.checkpoint, best=best)

    def __repr__(self) -> str:
        code = self._process.returncode
        state = "running" if self.is_running else "done" if code == 0 else f"ended with code {code}"
        return f"<numalign run {self.run_id}: {state}>"

    def _records(self) -> list[dict[str, Any]]:
        """Records of this run; none while the file is still that of an earlier one."""
        path = self.folder / "metrics.jsonl"
        try:
            if path.stat().st_mtime < self._began - 1:
                return []
            lines = path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        # The last line may be half written.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _show(self, bar: Any) -> None:
        records = [record for record in self._records() if "step" in record]
        if not records:
            return
        bar.update(int(records[-1]["step"]) - bar.n)
        losses = [record["loss"] for record in records if record.get("loss") is not None]
        if losses:
            bar.set_postfix(loss=f"{losses[-1]:.3g}", refresh=False)


def _bar(run: Run) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=run.total_steps, desc=run.run_id, unit="step")


def _drain(stream: TextIO, log: list[str]) -> None:
    for line in stream:
        log.append(line.rstrip("\n"))


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: paths as text, NumPy's numbers as numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def _resolved(program: str, file: Path, folder: Path, more: list[str]) -> dict[str, str]:
    """The keys of the whole configuration, defaults filled in; only those of one line.

    Raises:
        NumalignError: The configuration is not valid.
    """
    shown = subprocess.run(
        [program, "config", "show", str(file), *more], cwd=folder, capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise NumalignError(shown.stderr.replace(f"{file}: ", "").strip().removeprefix("error: "))
    known = {}
    for line in shown.stdout.splitlines():
        key, _, value = line.partition(": ")
        known[key] = value.strip("'\"")
    return known


@atexit.register
def _stop_all() -> None:
    for run in list(_running):
        if run.is_running:
            print(f"stopping run {run.run_id}", file=sys.stderr)
            run.stop()
