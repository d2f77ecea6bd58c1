"""Whatever happens to a process or to the network between them, a run ends with a line that names it and an exit code.

Network cuts need Linux's network namespaces; where those are not permitted, that test is left out.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from lumina_jax.cluster.connection import TOKEN_VARIABLE
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

FOLDER = Path(__file__).resolve().parent
LIMITS = {"heartbeat_timeout": 10, "join_timeout": 60}


def free_port() -> int:
    """A port that is free, and the next one too."""
    with socket.socket() as first:
        first.bind(("localhost", 0))
        return first.getsockname()[1]


def start(stack: ExitStack, index: int, port: int, processes: int = 2, token: str = "", **more) -> subprocess.Popen:
    """Starts process ``index`` of a run; it is ended with ``stack``."""
    arguments = dict(coordinator=f"localhost:{port}", processes=processes, index=index, limits=LIMITS) | more
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])} | ({TOKEN_VARIABLE: token} if token else {})
    command = [sys.executable, str(FOLDER / "fault_worker.py"), json.dumps(arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def await_step(process: subprocess.Popen, step: int = 2) -> None:
    """Waits until ``process`` comes to ``step``."""
    assert next(line for line in process.stdout if int(line) >= step)


def ends(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code of a process and its last line."""
    error = process.communicate(timeout=300)[1]
    return process.returncode, error.splitlines()[-1] if error else ""


@pytest.fixture
def run():
    """``run(fault, processes)`` starts a run, calls ``fault`` with its processes once they step, and returns how they end."""
    with ExitStack() as stack:

        def running(
            fault: Callable[[list[subprocess.Popen]], None], processes: int = 2, **more
        ) -> list[tuple[int, str]]:
            port = free_port()
            started = [start(stack, index, port, processes, **more) for index in range(processes)]
            for process in started:
                await_step(process)
            fault(started)
            return [ends(process) for process in started]

        yield running


def test_a_stopped_process_is_named_when_it_is_silent_for_too_long(run):
    def stop(processes):
        processes[1].send_signal(signal.SIGSTOP)
        code, line = ends(processes[2])
        assert code == EXIT_RESTART and "process 1 on " in line and "has not been heard of for" in line
        processes[1].send_signal(signal.SIGCONT)

    first, stopped, _ = run(stop, 3)
    assert first[0] == EXIT_RESTART and first[1].endswith("start all again to go on from the newest checkpoint")
    assert stopped[0] == EXIT_RESTART and stopped[1].startswith("process 1 of 3: the run ends: ")


def test_a_killed_process_is_named_at_once(run):
    (code, line), (killed, _) = run(lambda processes: processes[1].kill())
    assert (code, killed) == (EXIT_RESTART, -signal.SIGKILL)
    assert "process 1 on " in line and "died; it was last at step " in line


def test_a_second_start_and_a_stranger_are_turned_away_and_the_run_goes_on(run, tmp_path):
    with ExitStack() as stack:

        def start_again(processes):
            port = int(json.loads(processes[0].args[2])["coordinator"].partition(":")[2])
            strange, second = start(stack, 1, port, token="another run"), start(stack, 1, port)
            first = start(stack, 0, port)
            code, line = ends(strange)
            assert code == EXIT_ERROR and "has another name or LUMINA_RUN_TOKEN; give another --coordinator" in line
            code, line = ends(second)
            assert code == EXIT_RESTART and "goes on already with process 1 on " in line and "wait for its end" in line
            code, line = ends(first)
            assert code == EXIT_RESTART and "end the process of an earlier run that still holds it" in line

            (tmp_path / "go").touch()

        assert run(start_again, steps=9, hang_at=4, released_by=str(tmp_path / "go")) == [(0, ""), (0, "")]


def test_an_input_error_of_a_disk_restarts_all(run):
    with ExitStack() as stack:
        port = free_port()
        for process in (start(stack, 0, port), start(stack, 1, port, error_at=3)):
            code, line = ends(process)
            assert code == EXIT_RESTART and "process 1 on " in line
            assert "ended with OSError: [Errno 5] Input/output error: 'tokens-00000'; start all again to go on" in line


def test_a_step_that_hangs_is_ended_by_the_limit_of_a_step(run):
    with ExitStack() as stack:
        port = free_port()
        for process in (start(stack, 0, port, limit=4.0), start(stack, 1, port, limit=4.0, hang_at=4)):
            code, line = ends(process)
            assert (
                code == EXIT_RESTART and "nothing new for " in line and "process 1 on " in line and "at step 4" in line
            )


def test_a_single_process_that_hangs_in_a_step_ends_too():
    with ExitStack() as stack:
        code, line = ends(start(stack, 0, 1, processes=1, limit=4.0, hang_at=4))
    assert code == EXIT_RESTART and line.startswith("the run ends: nothing new for ") and "at step 4; start all" in line


NETWORK = """
set -e
mount -t tmpfs none /run && mkdir -p /run/netns
for side in 0 1; do ip link add bridge$side type bridge; ip link set bridge$side up; done
ip link add cable0 type veth peer name cable1
for side in 0 1; do ip link set cable$side master bridge$side; ip link set cable$side up; done
for host in 0 1 2 3; do
    ip netns add host$host
    ip link add port$host type veth peer name eth0 netns host$host
    ip link set port$host master bridge$((host / 2)); ip link set port$host up
    ip -n host$host addr add 10.77.0.1$host/24 dev eth0; ip -n host$host link set eth0 up; ip -n host$host link set lo up
done
for host in 0 1 2 3; do
    ip netns exec host$host "$PYTHON" "$WORKER" "{\\"index\\": $host, $ARGUMENTS}" > step$host 2> error$host &
    processes[$host]=$!
done
for host in 0 1 2 3; do until grep -qs '^3$' step$host; do sleep 0.1; done; done
ip link set cable0 down
set +e
for host in 0 1 2 3; do wait ${processes[$host]}; echo $? >> codes; done
"""
"""Four hosts on two switches, whose cable is cut once all run."""


@pytest.mark.skipif(
    shutil.which("ip") is None
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rnm", "true"], capture_output=True).returncode != 0,
    reason="no network namespaces here",
)
def test_a_cut_network_ends_both_sides_which_name_what_they_miss(tmp_path):
    arguments = json.dumps(dict(coordinator="10.77.0.10:7000", processes=4, limits=LIMITS))[1:-1]
    paths = dict(PYTHON=sys.executable, WORKER=str(FOLDER / "fault_worker.py"), PYTHONPATH=str(FOLDER.parents[1]))
    subprocess.run(
        ["unshare", "-rnm", "bash", "-c", NETWORK],
        cwd=tmp_path,
        env={**os.environ, **paths, "ARGUMENTS": arguments},
        check=True,
        timeout=120,
        capture_output=True,
    )
    assert (tmp_path / "codes").read_text().split() == [str(EXIT_RESTART)] * 4
    lines = [(tmp_path / f"error{host}").read_text() for host in range(4)]
    for line in lines[:2]:
        assert "has not been heard of for" in line and ("process 2 on" in line or "process 3 on" in line)
    for line in lines[2:]:
        assert "process 0 at 10.77.0.10:7000 has not been heard of for" in line


def test_no_limit_follows_the_clock_on_the_wall():
    """A clock that jumps changes nothing: all limits are counted by one that only runs on."""
    package = FOLDER.parents[1] / "lumina_jax"
    rooms = [*(package / "cluster").glob("*.py"), package / "train/global_batches.py", package / "train/lease.py"]
    assert len(rooms) > 8
    for room in rooms:
        assert "time.time(" not in room.read_text() and "datetime" not in room.read_text(), room
