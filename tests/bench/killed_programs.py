"""A whole program run in a process of its own, and killed there at a moment that is drawn: the machinery of kills.py.

The parent has imported everything and used no JAX, so that a fork of it is a program which begins at once.
"""

import functools
import io
import json
import os
import random
import signal
import socket
import time
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
LIFE_SECONDS = 600.0
"""The most that a program may take."""


class Moment(NamedTuple):
    """When a process is killed: ``seconds`` behind the ``number``th "start", "restore" or "save"; or at its ``number``th "file"
    call, before it, or with ``after`` behind it."""

    kind: str
    number: int = 1
    seconds: float = 0.0
    after: bool = False


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
    end = time.monotonic() + LIFE_SECONDS
    begun = time.monotonic()
    while len(codes) < len(children):
        for index, child in enumerate(children):
            with suppress(BlockingIOError):
                told[index] += [(byte, time.monotonic() - begun) for byte in os.read(pipes[index], 4096)]
            moment = moments[index]
            if moment and moment.kind != "file" and index not in due:
                events = [at for byte, at in told[index] if byte == EVENTS[moment.kind]]
                if len(events) >= moment.number:
                    due[index] = begun + events[moment.number - 1] + moment.seconds
            overdue = time.monotonic() > min(due.get(index, end), end)
            if overdue and index not in codes:
                os.kill(child, signal.SIGKILL)
                due[index] = float("inf")
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
    finally:
        os._exit(code)


def _telling(function: Callable, tell: Callable[[], None]) -> Callable:
    @functools.wraps(function)
    def call(*arguments: object, **options: object) -> object:
        tell()
        return function(*arguments, **options)

    return call


def _watch_file_calls(moment: Moment | None, tell: Callable[[], None]) -> None:
    """Counts the file calls of this process, and kills it at that of ``moment``."""
    left = moment.number if moment and moment.kind == "file" else 0

    @contextmanager
    def counted() -> Iterator[None]:
        nonlocal left
        tell()
        left -= 1
        if left == 0 and not moment.after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*arguments: object, **options: object) -> object:
            with counted():
                return function(*arguments, **options)

        return call

    for name in FILE_CALLS:
        setattr(os, name, watched(getattr(os, name)))
    plain_open = io.open

    def watched_open(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if set(mode).isdisjoint("wax+"):
            return plain_open(file, mode, *arguments, **options)
        with counted():
            return plain_open(file, mode, *arguments, **options)

    io.open = watched_open


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
