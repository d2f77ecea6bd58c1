"""How a process of the command line ends: in one line after an error, Ctrl-C, SIGTERM or a closed pipe, and without delay."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from lumina_jax.errors import printable

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141
"""Exit codes: 128 and the number of the signal."""
PATIENCE = 5.0
"""Seconds after which SIGTERM ends a process that is busy in compiled code and cannot unwind."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a verb as Ctrl-C does."""


@contextmanager
def signals(name: str) -> Iterator[None]:
    """In the block SIGTERM raises Terminated, and a second Ctrl-C ends the process at once, even inside of compiled code.

    ``name`` begins the line that is printed then. Does nothing outside of the main thread, where Python delivers no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noticed = threading.Event()

    def terminate(number: int, frame: FrameType | None) -> None:
        noticed.set()
        raise Terminated

    def watch() -> None:
        interrupts = 0
        while signal_number := os.read(reader, 1):
            interrupts += signal_number[0] == signal.SIGINT
            if interrupts > 1:
                _end_at_once(name, INTERRUPTED)
            ours = signal_number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is terminate
            if ours and not noticed.wait(PATIENCE):
                _end_at_once(name, TERMINATED)
        os.close(reader)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handler = signal.signal(signal.SIGTERM, terminate)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        signal.set_wakeup_fd(old_writer)
        os.close(writer)


def _end_at_once(name: str, code: int) -> None:
    os.write(2, f"\n{name}: ended at once\n".encode())
    os._exit(code)


def interrupt_of(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that led to ``error``: itself, or what an import or a cleanup turned into another error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def tell_interrupt(program: str, interrupt: KeyboardInterrupt) -> int:
    """Prints the one line of an interrupt, with its innermost note (errors.interrupted), and returns the exit code."""
    terminated = isinstance(interrupt, Terminated)
    note = "".join(f"; {printable(note)}" for note in getattr(interrupt, "__notes__", [])[:1] if note)
    print(f"{program}: {'terminated' if terminated else 'interrupted'}{note}", file=sys.stderr, flush=True)
    return TERMINATED if terminated else INTERRUPTED


def prepare_streams() -> None:
    """Lets stdout and stderr show what their encoding lacks as escapes, and each line at once, also in a pipe or a file."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def leave(main: Callable[[], int]) -> NoReturn:
    """Runs ``main`` and ends the process with its code; after a signal without waiting for threads that still read or compile."""
    try:
        code = main()
        at_once = code in (INTERRUPTED, TERMINATED)
    except SystemExit as end:
        code, at_once = end.code, False
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    if at_once or code == BROKEN_PIPE:
        os._exit(code)
    sys.exit(code)
