"""The restart loop that LAUNCH.md names: it starts a command again by its exit code, and not for ever."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lumina_jax import faults
from lumina_jax.cli import ending

PODS = Path(__file__).resolve().parents[2] / "lumina_jax" / "pods"
START = """
number=$(cat starts 2> /dev/null || echo 0); echo $((number + 1)) > starts
set -- $OUTCOMES; shift "$number"
code=${1%%:*}; saved=${1#*:}
[ -n "$saved" ] && echo "$saved" > "$LUMINA_PROGRESS_FILE"
exit "$code"
"""
"""A command whose n-th start has the n-th of the outcomes CODE:SAVED, where SAVED is the step that it saved, if any."""


def loop(folder: Path, outcomes: str, limit: int = 3) -> tuple[int, int, list[str]]:
    """(exit code, number of starts, lines on stderr) of the loop around :data:`START`."""
    environment = {**os.environ, "OUTCOMES": outcomes, "RESTART_PAUSE": "0", "RESTART_LIMIT": str(limit)}
    command = ["bash", str(PODS / "restart.sh"), "bash", "-c", START]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return ended.returncode, int((folder / "starts").read_text()), ended.stderr.splitlines()


@pytest.mark.parametrize(
    ("outcomes", "code", "starts"),
    [
        ("0:", 0, 1),
        ("2:", 2, 1),
        ("130:7", 130, 1),
        ("143:7", 143, 1),
        ("75: 134:4 137: 139: 0:9", 0, 5),
        ("135: 2:", 2, 2),
    ],
)
def test_the_exit_code_decides_whether_it_starts_again(outcomes, code, starts, tmp_path):
    assert loop(tmp_path, outcomes)[:2] == (code, starts)


def test_it_gives_up_after_so_many_starts_that_saved_nothing_new(tmp_path):
    code, starts, lines = loop(tmp_path, "75: 75: 75:4 75:4 75: 134: 0:9")
    assert (code, starts) == (134, 6)
    assert lines[-1].startswith("restart.sh: 3 starts in a row saved nothing new, the last ended with exit code 134")


def test_sigterm_reaches_the_command_and_ends_the_loop(tmp_path):
    command = "trap 'echo saved; exit 143' TERM; touch ready; while true; do sleep 0.05; done"
    started = ["bash", str(PODS / "restart.sh"), "bash", "-c", command]
    with subprocess.Popen(started, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 143


def test_the_launch_notes_list_every_exit_code_and_what_the_loop_does_with_it():
    table = re.findall(r"^\| (\d+) \| [^|]+ \| (\w+)", (PODS / "LAUNCH.md").read_text(encoding="utf-8"), re.MULTILINE)
    restarted = {int(code) for code, answer in table if answer == "yes"}
    script = (PODS / "restart.sh").read_text()
    assert restarted == set(map(int, re.search(r"^ +([\d |]+)\) ;;", script, re.MULTILINE)[1].split(" | ")))
    known = {faults.EXIT_ERROR, faults.EXIT_RESTART, ending.INTERRUPTED, ending.TERMINATED, ending.BROKEN_PIPE, 0, 1}
    assert known <= {int(code) for code, _ in table}
