"""Several processes, like the hosts of a pod, train as one does, and end together, whatever ends one of them."""

import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import save, small_cfg
from train_parts import batches, experiment, without, worker

from lumina_jax.config import override
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART
from lumina_jax.train.checkpoint import newest
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics
from lumina_jax.train.run_log import read_history

ACCUMULATE = ["optim.accumulate=2"]


def free_port() -> int:
    """A free port p such that p + 1 is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("localhost", 0))
            port = first.getsockname()[1]
            with suppress(OSError):
                second.bind(("localhost", port + 1))
                return port


def run_processes(
    mesh: tuple[int, int, int], arguments: list[dict], begins: str = "process ", **shared
) -> tuple[list[int], list[str]]:
    """Runs a process for each of ``arguments``, with the ``shared`` ones; their exit codes, and lines that ``begins`` begins."""
    shared = {"devices": 1, "processes": len(arguments), "port": free_port(), "changes": ACCUMULATE, **shared}
    running = [
        worker(subprocess.PIPE, mesh=mesh, **{"rank": rank, **shared, **single})
        for rank, single in enumerate(arguments)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in running]
        return [process.returncode for process in running], [
            line for text in errors for line in text.splitlines() if line.startswith(begins)
        ]
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> list[dict[str, float]]:
    """The metrics of an uninterrupted run of one process, with accumulation."""
    cfg = override(replace(experiment(), out=str(tmp_path_factory.mktemp("reference"))), ACCUMULATE)
    train(cfg, batches(cfg), show=False)
    return read_metrics(cfg.out)


def assert_same_metrics(reference, out: Path) -> None:
    """Every step has the metrics of ``reference``, to float32 rounding."""
    for line, expected in zip(read_metrics(out), reference, strict=True):
        assert line == pytest.approx(expected, rel=2e-5)


def test_several_processes_train_as_one_does(reference, tmp_path):
    """Two processes until one of them gets SIGTERM, then four, with replicas, to the last step."""
    out = dict(out=str(tmp_path))
    assert run_processes((1, 2, 1), [{}, {"term_at": 3}], **out) == ([143, 143], [])
    stopped = int(newest(tmp_path).name)
    assert stopped == 5 and len(read_metrics(tmp_path)) == 5
    assert run_processes((2, 2, 1), [{}] * 4, **out) == ([0] * 4, [])
    assert_same_metrics(reference, tmp_path)


def test_when_a_process_is_killed_all_end_and_a_restart_continues(reference, tmp_path):
    """Kill -9 of process 1, then of process 0, the coordinator; the tensor axis first inside a process, then across both."""
    out = dict(out=str(tmp_path), devices=2)
    codes, lines = run_processes((1, 2, 2), [{}, {"kill_at": 5}], **out)
    assert codes == [EXIT_RESTART, -signal.SIGKILL]
    assert len(lines) == 1 and "process 0 of 2: the run ends: process 1 on " in lines[0] and "died" in lines[0]
    assert newest(tmp_path).name in ("2", "4")  # a save that is under way does not count
    codes, lines = run_processes((1, 2, 2), [{"kill_at": 6}, {}], **out)
    assert codes[0] == -signal.SIGKILL and codes[1] != 0
    assert len(lines) == 1 and "process 1 of 2: the run ends: process 0 at localhost" in lines[0]
    assert run_processes((1, 1, 4), [{}, {}], **out) == ([0, 0], [])
    assert_same_metrics(reference, tmp_path)


def line_with(process: subprocess.Popen, words: str) -> str:
    """The next line on stderr that holds ``words``."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"{words!r} is not among the lines:\n{''.join(lines)}")


def test_a_run_goes_on_without_a_lost_slice_and_takes_it_in_after_a_save(reference, tmp_path):
    """Two slices of a process: slice 1 runs alone, without the first place of the coordinator, until slice 0 is back."""
    shared = dict(out=str(tmp_path), devices=1, processes=2, port=free_port(), other_port=free_port())
    changes = [*ACCUMULATE, "pod.slices=2", "pod.elastic=true"]
    waits = dict(wait_at=3, wait_for=f"{tmp_path}-returned", changes=[*changes, "pod.elastic_wait=1"])
    with ExitStack() as stack:
        alone = stack.enter_context(worker(subprocess.PIPE, mesh=(2, 1, 1), rank=1, **shared, **waits))
        stack.callback(alone.kill)
        assert line_with(alone, "the run begins without slice 0")
        returned = stack.enter_context(worker(subprocess.PIPE, mesh=(2, 1, 1), rank=0, **shared, **waits))
        stack.callback(returned.kill)
        assert line_with(returned, "the run goes on with slice 1; this process is taken in after the next save")
        Path(waits["wait_for"]).touch()
        step = line_with(alone, "tiny: slice 0 is back; step ").split()[6]
        assert line_with(returned, "the run ends: the other slices left")
        assert (alone.wait(60), returned.wait(60)) == (EXIT_RESTART, EXIT_RESTART)
    assert newest(tmp_path).name == step in ("2", "4")
    assert run_processes((2, 1, 1), [{}, {}], **shared, changes=[*changes, "pod.elastic_wait=60"]) == ([0, 0], [])
    assert_same_metrics(reference, tmp_path)


def test_a_process_that_never_joins_is_named(tmp_path):
    codes, lines = run_processes((1, 2, 1), [{"processes": 2}], out=str(tmp_path), changes=["pod.join_timeout=1"])
    assert codes == [EXIT_RESTART]
    (line,) = lines
    assert line.startswith("process 0 of 2: the run ends: joining: waited 1 s for process 1, which never came")


def test_an_error_in_one_process_ends_all_and_all_print_it(tmp_path):
    codes, lines = run_processes((1, 2, 1), [{}, {"fail_at": 3}], out=str(tmp_path))
    assert codes[0] == EXIT_ERROR and codes[1] != 0
    assert lines and all("ended with ValueError: a batch that cannot be read" in line for line in lines)


def test_a_host_with_an_old_listing_of_the_checkpoints_ends_the_run_before_it_reads_any(tmp_path):
    save(small_cfg(tmp_path), 4, 5)
    codes, lines = run_processes((1, 2, 1), [{}, {"unseen": "5"}], out=str(tmp_path), begins="run.py train: ")
    assert codes == [EXIT_ERROR] * 2 and len(set(lines)) == 1
    words = f"does not see {tmp_path}/checkpoints/5, which process 0 sees: mount out without caches of listings"
    assert lines[0].startswith("run.py train: process 1 on ") and words in lines[0]
    assert newest(tmp_path).name == "5" and not (tmp_path / "metrics.jsonl").exists()


def test_two_processes_go_back_past_a_bad_batch_as_one_does(tmp_path):
    plain = override(replace(experiment(), out=str(tmp_path / "one")), ACCUMULATE)
    train(plain, without(plain, {4}), show=False)
    out, bad = tmp_path / "two", {"bad": {"4": float("nan")}}
    changes = [*ACCUMULATE, "guard.nonfinite=back"]
    assert run_processes((1, 2, 1), [bad, bad], out=str(out), changes=changes) == ([0, 0], [])
    assert_same_metrics(read_metrics(plain.out), out)
    assert [line["event"] for line in read_history(str(out))] == ["started", "started", "went back"]
