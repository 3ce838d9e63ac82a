"""Training from Python: real runs, their end, and what is told of them."""

from __future__ import annotations

import signal
import threading
import time
import urllib.request

import helpers
import numalign
import pytest
from numalign.run import Run


@pytest.fixture
def program(binary, monkeypatch):
    monkeypatch.setenv("PYNUMALIGN_BINARY", binary)


def test_a_run_is_trained_and_told_of(program, tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed: metrics are not read as a table")
    config = {"stage": "nn", "run_id": "mine", "eval_every": 1, "eval_samples": 8, "eval_count": 50}
    run = numalign.launch({**helpers.SHORT, **config}, folder=tmp_path, num_epochs=3)
    assert run.checkpoint == tmp_path / "chk" / "mine.safetensors" and run.checkpoint.is_file()
    assert run.total_steps == 15 and not run.is_running and repr(run) == "<numalign run mine: done>"
    metrics = run.metrics()
    assert list(metrics[metrics.kind == "epoch"].step) == [5, 10, 15]
    assert run.report["samples"] == 50 and run.report["mae"] > 0
    history = numalign.Checkpoint.read(run.checkpoint).history
    assert len(history) == 3 and run.best == min(history, key=lambda made: made["mae"])


def test_a_wrong_configuration_is_refused_before_anything_starts(program, tmp_path):
    for config, words in [
        ({"stage": "numbers"}, "stage"),
        ({"batch_sise": 8}, "batch_size"),
        ({"run_id": "a b"}, "run_id"),
        ({"lr": -1}, "lr"),
    ]:
        with pytest.raises(numalign.NumalignError, match=words) as error:
            numalign.launch(config, folder=tmp_path)
        assert "config.yaml" not in str(error.value)
    assert not (tmp_path / "chk").exists()


def test_a_failed_run_says_why(program, tmp_path):
    with pytest.raises(numalign.NumalignError, match="layer"):
        numalign.launch({**helpers.SHORT, "stage": "nn", "layer": 9}, folder=tmp_path, progress=False)


def endless(tmp_path, **keys) -> Run:
    """A run that has made an epoch and is far from its end."""
    pytest.importorskip("pandas", reason="pandas is not installed: metrics are not read as a table")
    config = {**helpers.SHORT, "stage": "nn", "run_id": "long", "num_epochs": 100_000}
    run = numalign.launch(config, folder=tmp_path, wait=False, **keys)
    while run.metrics().empty:
        assert run.is_running, run.log
        time.sleep(0.1)
    return run


def test_a_stopped_run_leaves_a_checkpoint_and_goes_on_from_it(program, tmp_path):
    run = endless(tmp_path)
    assert run.report is None
    run.stop()
    assert not run.is_running
    run.stop()
    step = numalign.Checkpoint.read(run.checkpoint).step
    assert step > 0
    again = endless(tmp_path, resume="auto")
    while again.metrics().step.max() <= step + 5:
        assert again.is_running, again.log
        time.sleep(0.1)
    again.stop()
    assert numalign.Checkpoint.read(again.checkpoint).step > step


def test_an_interrupt_ends_the_run_in_order(program, tmp_path):
    run = endless(tmp_path)
    main = threading.main_thread().ident
    threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    assert not run.is_running and numalign.Checkpoint.read(run.checkpoint).step > 0


def test_the_page_of_a_run_is_named(program, binary, tmp_path):
    if '"http"' not in helpers.run(binary, tmp_path, "config", "schema"):
        pytest.skip("this binary serves no page")
    run = endless(tmp_path)
    with urllib.request.urlopen(run.page, timeout=10) as answer:
        assert answer.status == 200
    run.stop()


def test_without_a_binary_it_says_where_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PYNUMALIGN_BINARY", str(tmp_path / "nowhere"))
    with pytest.raises(numalign.NumalignError, match="nowhere"):
        numalign.launch({}, folder=tmp_path)
