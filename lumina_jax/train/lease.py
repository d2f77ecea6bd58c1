"""One run on one folder: a lease with an owner and a heartbeat, on a disk or in a store, taken over when it is stale.

``out/lease`` holds a numbered file of the run that has the folder, which it writes anew at every heartbeat. Another run takes the
folder by creating the file of the next number, which only one can: a store creates on the condition that there is none (GCS:
generation 0), a disk by a link. Whoever finds a higher number than its own has lost the folder. Nobody's clock is compared with
another's: a lease is stale when whoever looks at it has seen no heartbeat for the whole time limit.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lumina_jax.errors import ExistingFileError, StorageError
from lumina_jax.progress import print_line, waiting
from lumina_jax.storage import atomic_write_text, held, storage_errors

FOLDER = "lease"
BEATS = 4
"""Heartbeats within the time limit."""
PEEKS = 20
"""Times within the time limit that a run that waits for a lease to become stale looks at it."""


class Lease:
    """Holds the folder ``out`` for this run, from :meth:`take` to :meth:`release`; lost after ``seconds`` without a heartbeat.

    A thread writes the heartbeats. Its owner must call :meth:`check` before each write to the folder.
    """

    def __init__(self, out: str, seconds: float, show: bool = True):
        self._out, self._seconds, self._show = out, seconds, show
        with storage_errors(out):
            self._files, root = fsspec.core.url_to_fs(out)
        self._folder = f"{root.rstrip('/')}/{FOLDER}"
        self._owner = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "boot": _boot(),
            "id": secrets.token_hex(8),
        }
        self._number = 0
        self._lost = ""
        self._confirmed = 0.0
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def take(self) -> None:
        """Takes the folder, at once or when the lease of a run that died is stale.

        Raises ExistingFileError naming the run that has it, StorageError where the folder cannot be written.
        """
        number = 0  # a listing may be old, but not what was seen
        while not self._number:
            with storage_errors(self._out):
                number = max(self._numbers(), default=0) if number == 0 else number
                if number:
                    self._wait_until_free(number)
                number += 1
                if self._create(number):
                    self._number = number
        self._confirmed = time.monotonic()
        for old in self._numbers():
            if old < self._number:
                self._remove(old)
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raises StorageError when the folder is no longer this run's. Reads it only where the heartbeats are late."""
        if not self._lost and time.monotonic() - self._confirmed > self._seconds / 2:
            self._confirm()
        if self._lost:
            raise StorageError(f"{self._out}: {self._lost}; this run ends, and nothing more is written there")

    def release(self) -> None:
        """Gives the folder back, so that another run need not wait; where it cannot be written a line says so.

        Raises nothing for that: what ended the run comes first, and a lease that was not given back becomes stale.
        """
        self._ended.set()
        with self._writing:
            try:
                if self._number and not self._lost and self._is_newest():
                    self._write(self._number, {**self._owner, "ended": True})
            except Exception as error:  # a store's own errors, of any kind
                reason = " ".join(str(error).split())
                print_line(
                    f"{self._out} is not given back ({reason}): a start on another host waits {self._seconds:.0f} s"
                )

    def _wait_until_free(self, number: int) -> None:
        """Returns when lease ``number`` was released or is stale; ExistingFileError when its owner is alive."""
        first = self._read(number)
        if first.get("ended") or self._died_here(first):
            return
        owner = f"process {first.get('process')} on {first.get('host')}"
        start = time.monotonic()
        with waiting(f"waiting {self._seconds:.0f} s for a sign of {owner}, which had {self._out}", show=self._show):
            while time.monotonic() - start < self._seconds:
                time.sleep(self._seconds / PEEKS)
                if (now := self._read(number)) == first:
                    continue
                if now.get("ended") or not now:
                    return
                raise ExistingFileError(
                    f"{self._out}: another run, {owner}, is training there; wait for its end, or give another out"
                )

    def _died_here(self, lease: dict[str, object]) -> bool:
        """Whether the owner was a process of this machine that is no more."""
        if (lease.get("host"), lease.get("boot")) != (self._owner["host"], self._owner["boot"]) or not _boot():
            return False
        return not Path(f"/proc/{lease.get('process')}").exists()

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds / BEATS):
            self._confirm()
            if self._lost:
                return

    def _confirm(self) -> None:
        """Sees that the folder is still this run's, and writes a heartbeat; a store that fails for a while is asked again."""
        with self._writing:
            if self._ended.is_set() or self._lost:
                return
            begin = time.monotonic()
            try:
                if not self._is_newest():
                    self._lost = "another run has taken the folder over, since this one gave no sign for too long"
                    return
                self._write(self._number, {**self._owner, "beat": secrets.token_hex(4)})
                self._confirmed = begin
            except Exception as error:  # a store's own errors, of any kind
                if begin - self._confirmed > self._seconds:
                    self._lost = f"no heartbeat could be written for {begin - self._confirmed:.0f} s ({error})"

    def _is_newest(self) -> bool:
        return not self._read(self._number + 1)

    def _numbers(self) -> list[int]:
        """The numbers of all leases; read anew."""
        self._files.invalidate_cache(self._folder)
        try:
            names = [path.rpartition("/")[2] for path in self._files.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return []
        return [int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit()]

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _read(self, number: int) -> dict[str, object]:
        """A lease; empty when it is gone."""
        try:
            return json.loads(self._files.cat_file(self._path(number)))
        except FileNotFoundError:
            return {}
        except ValueError:  # half written: a new content is a sign of life
            return {"beat": secrets.token_hex(4)}

    def _create(self, number: int) -> bool:
        """Creates lease ``number`` for this run; False when another was faster."""
        content = json.dumps({**self._owner, "beat": ""})
        path = self._path(number)
        if isinstance(self._files, LocalFileSystem):
            return _create_file(Path(path), content)
        try:
            self._files.pipe_file(path, content.encode(), mode="create")
        except FileExistsError:
            return False
        except Exception:  # a store's own error for a failed condition, or a reply that was lost
            if not self._read(number):
                raise
        return self._read(number).get("id") == self._owner["id"]

    def _write(self, number: int, lease: dict[str, object]) -> None:
        if isinstance(self._files, LocalFileSystem):
            atomic_write_text(Path(self._path(number)), json.dumps(lease))
        else:
            self._files.pipe_file(self._path(number), json.dumps(lease).encode())

    def _remove(self, number: int) -> None:
        try:
            self._files.rm_file(self._path(number))
        except FileNotFoundError:
            return


def _create_file(path: Path, content: str) -> bool:
    """Creates a file with ``content``, whole; False when there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{secrets.token_hex(8)}.draft")
    draft.write_text(content)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a mount without hard links
        return _create_exclusively(path, content)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, content: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _boot() -> str:
    """Names the start of this machine and its space of process numbers; empty where the system does not tell."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return f"{file.read_text().strip()} {os.readlink('/proc/self/ns/pid')}" if file.exists() else ""


@contextmanager
def sole_run(out: str, seconds: float, show: bool = True) -> Iterator[Lease]:
    """Holds ``out`` in the with-block: by a lock against other processes of this machine, and by a :class:`Lease` against all.

    Raises as :meth:`Lease.take` and :func:`lumina_jax.storage.held`.
    """
    with nullcontext() if "://" in out else held(Path(out), "training"):
        lease = Lease(out, seconds, show)
        lease.take()
        try:
            yield lease
        finally:
            lease.release()
