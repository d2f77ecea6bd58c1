"""A whole program run in a process of its own, and killed there at a moment that is drawn: the machinery of kills.py.

The parent has imported everything and used no JAX, so that a fork of it is a program which begins at once.
"""

import errno
import functools
import io
import json
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import jax

import run
from lumina_jax.cli import ending
from lumina_jax.train.checkpoint import Saver

FILE_CALLS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync")
"""The functions of ``os`` at which a process is killed at the moment "file", right before or right after; and opening to write."""
EVENTS = {"start": 0, "restore": 1, "save": 2}
"""What a program tells its parent when it begins, as a byte."""
BALLAST = "ballast"
"""The file that fills a disk."""
LIFE_SECONDS = 600.0
"""The most that a program may take."""


class Moment(NamedTuple):
    """When a process is killed: ``seconds`` behind the ``number``th "start", "restore" or "save"; or at its ``number``th "file"
    call, before it, or with ``after`` behind it. With ``asleep`` it is not killed but stopped (SIGSTOP) for so many seconds.

    Or what else befalls it at its ``number``th file call ``below`` a folder: that call and, but for EIO, all later ones "fail" with
    the ``error`` number of errno; or the disk there becomes "full".
    """

    kind: str
    number: int = 1
    seconds: float = 0.0
    after: bool = False
    error: int = 0
    below: str = ""
    asleep: float = 0.0


class Life(NamedTuple):
    """How the processes of a program ended: their exit codes (-9: killed), the ``moments`` of "restore" and "save" of the first in
    seconds since its start, its number of file calls, and the seconds of the whole."""

    codes: list[int]
    moments: dict[str, list[float]]
    file_calls: int
    seconds: float


def free_port() -> int:
    """A port that is free, and the next one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("localhost", 0))
            port = first.getsockname()[1]
            with suppress(OSError):
                second.bind(("localhost", port + 1))
                return port


def live(commands: Sequence[list[str]], log: Path, moments: Sequence[Moment | None]) -> Life:
    """Runs a process for each of ``commands``, words behind run.py; process i is killed at ``moments[i]``. ``log`` gets what they
    print."""
    children, pipes, begun = [], [], time.monotonic()
    for command, moment in zip(commands, moments, strict=True):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            _be_the_program(command, log, moment, writer)
        os.close(writer)
        os.set_blocking(reader, False)
        children.append(child)
        pipes.append(reader)
    codes, told = _watch(children, pipes, moments)
    seconds = time.monotonic() - begun
    found = {kind: [at for byte, at in told[0] if byte == EVENTS[kind]] for kind in EVENTS}
    calls = sum(byte == len(EVENTS) for byte, _ in told[0])
    return Life(codes, found, calls, seconds)


def _watch(
    children: list[int], pipes: list[int], moments: Sequence[Moment | None]
) -> tuple[list[int], list[list[tuple[int, float]]]]:
    """Kills each child at its moment; (exit codes, what each told and when) once all have ended."""
    codes: dict[int, int] = {}
    told: list[list[tuple[int, float]]] = [[] for _ in children]
    due: dict[int, float] = {}
    woken: set[int] = set()
    end = time.monotonic() + LIFE_SECONDS
    begun = time.monotonic()
    while len(codes) < len(children):
        for index, child in enumerate(children):
            with suppress(BlockingIOError):
                told[index] += [(byte, time.monotonic() - begun) for byte in os.read(pipes[index], 4096)]
            moment = moments[index]
            if moment and moment.kind in EVENTS and index not in due:
                events = [at for byte, at in told[index] if byte == EVENTS[moment.kind]]
                if len(events) >= moment.number:
                    due[index] = begun + events[moment.number - 1] + moment.seconds
            overdue = time.monotonic() > min(due.get(index, end), end)
            if overdue and index not in codes:
                asleep = moment.asleep if moment and index not in woken else 0.0
                os.kill(child, signal.SIGSTOP if asleep else signal.SIGCONT if index in woken else signal.SIGKILL)
                due[index] = time.monotonic() + asleep if asleep else float("inf")
                woken |= {index} if asleep else set()
            ended, status = os.waitpid(child, os.WNOHANG) if index not in codes else (0, 0)
            if ended:
                codes[index] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    for index, pipe in enumerate(pipes):
        with suppress(BlockingIOError):
            told[index] += [(byte, time.monotonic() - begun) for byte in os.read(pipe, 1 << 16)]
        os.close(pipe)
    return [codes[index] for index in range(len(children))], told


def _be_the_program(command: list[str], log: Path, moment: Moment | None, writer: int) -> None:
    """In the child: runs the program and never returns."""
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        print(f"--- {command} {moment}", flush=True)
        jax.config.update("jax_num_cpu_devices", 1)

        def tell(kind: int) -> None:
            with suppress(BlockingIOError):
                os.write(writer, bytes([kind]))

        os.set_blocking(writer, False)
        for name in ("restore", "save"):
            setattr(Saver, name, _telling(getattr(Saver, name), functools.partial(tell, EVENTS[name])))
        _watch_file_calls(moment, functools.partial(tell, len(EVENTS)))
        tell(EVENTS["start"])
        ending.leave(lambda: run.main(command))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _telling(function: Callable, tell: Callable[[], None]) -> Callable:
    @functools.wraps(function)
    def call(*arguments: object, **options: object) -> object:
        tell()
        return function(*arguments, **options)

    return call


def _watch_file_calls(moment: Moment | None, tell: Callable[[], None]) -> None:
    """Counts the file calls of this process, and lets it meet the ``moment`` there."""
    left = moment.number if moment and moment.kind not in EVENTS else 0

    @contextmanager
    def counted(file: object) -> Iterator[None]:
        nonlocal left
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.path.abspath(os.fspath(file))
        if moment and not path.startswith(moment.below):
            yield
            return
        tell()
        left -= 1
        if left <= 0 and moment and moment.kind == "fail" and (left == 0 or moment.error != errno.EIO):
            raise OSError(moment.error, os.strerror(moment.error), *[] if isinstance(file, int) else [path])
        if left == 0 and moment.kind == "full":
            fill(moment.below)
        if left == 0 and moment.kind == "file" and not moment.after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if left == 0 and moment.kind == "file":
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(file: object, *arguments: object, **options: object) -> object:
            with counted(file):
                return function(file, *arguments, **options)

        return call

    for name in FILE_CALLS:
        setattr(os, name, watched(getattr(os, name)))
    plain_open, counted_open = io.open, watched(io.open)

    def watched_open(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        reads = set(mode).isdisjoint("wax+") or isinstance(file, int)
        return (plain_open if reads else counted_open)(file, mode, *arguments, **options)

    io.open = watched_open


def fill(folder: str) -> None:
    """Fills the disk of a folder, to its last byte."""
    ballast = os.open(f"{folder}/{BALLAST}", os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while os.write(ballast, bytes(1 << 16)):
            pass
    with suppress(OSError):
        while os.write(ballast, b"0"):
            pass
    os.close(ballast)


def drawn(rng: random.Random, kinds: Sequence[str], reference: Life) -> Moment:
    """A moment of one of ``kinds``, as they came in the life of a program that was not killed.

    "restore" and "save" lie between one of their beginnings and what follows it within a second; "start" anywhere in the life.
    """
    kind = rng.choice(kinds)
    if kind == "file":
        return Moment(kind, rng.randint(1, max(1, reference.file_calls)), after=rng.random() < 0.5)
    if kind == "start":
        return Moment(kind, 1, rng.uniform(0, reference.seconds))
    return Moment(kind, rng.randint(1, max(1, len(reference.moments[kind]))), rng.uniform(0, 1.0) ** 2)


def contents(folder: Path) -> dict[str, bytes]:
    """The files below ``folder`` by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def numbers_of_checkpoint(checkpoint: Path) -> dict[str, int]:
    """The checksum of every array, by name, that a checkpoint recorded."""
    return json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["checksums"]
