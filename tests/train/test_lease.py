"""Two runs on one folder exclude each other: on a disk, and in a store, whose files appear on a condition."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from lumina_jax.errors import ExistingFileError, StorageError
from lumina_jax.train import lease
from lumina_jax.train.lease import Lease, sole_run

SECONDS = 1.0


@pytest.fixture(params=["disk", "store"])
def out(request, tmp_path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    request.getfixturevalue("gcs")
    return "gs://bucket/run"


def die(holder: Lease) -> None:
    """Ends the heartbeats as the death of a machine does."""
    holder._ended.set()


def may_write(holder: Lease) -> bool:
    """Whether a run that took the folder still has it, when it looks."""
    holder._confirmed = 0.0
    try:
        holder.check()
    except StorageError:
        return False
    return True


def elsewhere(monkeypatch) -> None:
    """Whoever looks from now on is on another machine."""
    monkeypatch.setattr(lease, "_boot", lambda: "another boot")


def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_when_it_ended(out, monkeypatch):
    elsewhere(monkeypatch)
    with sole_run(out, SECONDS, show=False) as first:
        first.check()
        with pytest.raises(ExistingFileError, match=r"another run, process \d+ on .*, is training there"):
            Lease(out, SECONDS, show=False).take()
    with sole_run(out, 3600, show=False):  # at once: the first was released
        pass


def test_the_folder_of_a_run_that_died_is_taken_over_and_the_dead_one_may_not_write(out, monkeypatch):
    first = Lease(out, SECONDS, show=False)
    first.take()
    die(first)
    elsewhere(monkeypatch)
    second = Lease(out, SECONDS, show=False)
    second.take()
    second.check()
    first._ended.clear()  # it was only asleep
    assert not may_write(first) and may_write(second)
    with pytest.raises(StorageError, match="another run has taken the folder over"):
        first.check()
    first.release()
    second.check()
    second.release()
    third = Lease(out, 3600, show=False)
    third.take()
    third.release()


def test_a_folder_that_cannot_be_given_back_hides_no_error(tmp_path, monkeypatch, capsys):
    elsewhere(monkeypatch)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="checkpoint 4"), sole_run(str(tmp_path), SECONDS, show=False):
        monkeypatch.setattr(lease, "atomic_write_text", full)
        raise StorageError("checkpoint 4 could not be saved")
    assert f"{tmp_path} is not given back ([Errno 28] No space left on device): a start" in capsys.readouterr().err


def test_a_clock_that_is_set_forward_and_back_loses_no_folder(tmp_path, monkeypatch):
    elsewhere(monkeypatch)
    real = time.time
    with sole_run(str(tmp_path), SECONDS, show=False) as first:
        for jump in (86400, -86400):
            monkeypatch.setattr(time, "time", lambda: real() + jump)  # noqa: B023, called before the next
            with pytest.raises(ExistingFileError, match=r"another run, process \d+ on .*, is training there"):
                Lease(str(tmp_path), SECONDS, show=False).take()
            first.check()


def test_of_many_that_wait_one_takes_the_folder(out, monkeypatch, request):
    """Also where listings are old, as those of a mounted bucket."""
    first = Lease(out, SECONDS, show=False)
    first.take()
    die(first)
    elsewhere(monkeypatch)
    if out.startswith("gs:"):
        request.getfixturevalue("gcs").buckets.freeze_listings()
    outcomes = []

    def take() -> None:
        candidate = Lease(out, SECONDS, show=False)
        try:
            candidate.take()
            outcomes.append(candidate)
        except ExistingFileError:
            outcomes.append(None)

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(may_write(candidate) for candidate in filter(None, outcomes)) == 1
    for candidate in filter(None, outcomes):
        candidate.release()


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path):
    first = Lease(str(tmp_path), 3600, show=False)
    first._owner["process"] = 2**22 + 1  # above the largest number of a process
    first.take()
    die(first)
    second = Lease(str(tmp_path), 3600, show=False)
    second.take()
    second.release()
    assert [path.name for path in Path(tmp_path, "lease").iterdir()] == ["00000002.json"]
