"""How a process of the command line ends: in one line after an error, Ctrl-C, SIGTERM or a closed pipe, and without delay."""

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from lumina_jax.cli.parser import as_called, program_name
from lumina_jax.errors import UserError, printable

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141
"""Exit codes: 128 and the number of the signal."""
RESTART = 75
"""The exit code of an error against which a restart may help: that of lumina_jax/faults.py, which --help does not wait for."""
PATIENCE = 5.0
"""Seconds after which SIGTERM ends a process that is busy in compiled code and cannot unwind."""

REFUSALS = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "mend the link",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "give one that can be written",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EIO: "check the disk",
}
"""What a system refuses whatever a program does, and the cure."""

CLIENTS = ("gcsfs", "s3fs")
"""Loggers of the clients of stores."""
IMPORT = "<frozen importlib"
"""How the names of the files begin whose code runs while a module is imported."""
REPEAT_SECONDS = 0.05
"""After which an interrupt that was raised in a callback of a library, and swallowed there, is raised again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a verb as Ctrl-C does."""


@contextmanager
def signals(name: str, keeps: str = "") -> Iterator[list[KeyboardInterrupt]]:
    """In the block SIGTERM raises Terminated, as SIGINT raises KeyboardInterrupt; a second Ctrl-C ends the process at once.

    The value is a list of what was raised, also where an import or a cleanup made another error of it; what a callback swallowed
    is raised again. During an import, where an exception can abort a library and where nothing is written, the process ends at once
    with the line of :func:`tell_interrupt`. Compiled code, which no exception can end, ends by a second Ctrl-C, and PATIENCE
    seconds after SIGTERM; ``name`` begins the line that is printed then. Outside of the main thread, where Python delivers no
    signals, this does nothing.
    """
    raised: list[KeyboardInterrupt] = []
    if threading.current_thread() is not threading.main_thread():
        yield raised
        return
    noticed, repeated = threading.Event(), 0

    def repeat(unraisable: "sys.UnraisableHookArgs") -> None:
        nonlocal repeated
        if not any(unraisable.exc_value is error for error in raised):
            return old_hook(unraisable)
        repeated += 1
        number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
        threading.Timer(REPEAT_SECONDS, signal.raise_signal, [number]).start()

    def handle(number: int, frame: FrameType | None) -> None:
        noticed.set()
        raised.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        while frame is not None:
            if frame.f_code.co_filename.startswith(IMPORT):
                _end_at_once(*_last_words(name, raised[-1], keeps))
            frame = frame.f_back
        raise raised[-1]

    def watch() -> None:
        interrupts = 0
        while signal_number := os.read(reader, 1):
            interrupts += signal_number[0] == signal.SIGINT
            if interrupts > 1 + repeated:
                _end_at_once(f"\n{name}: ended at once", INTERRUPTED)
            ours = signal_number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is handle
            if ours and not noticed.wait(PATIENCE):
                _end_at_once(f"{name}: terminated at once", TERMINATED)
        os.close(reader)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    old_hook, sys.unraisablehook = sys.unraisablehook, repeat
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield raised
    finally:
        sys.unraisablehook = old_hook
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_writer)
        os.close(writer)


def _end_at_once(line: str, code: int) -> NoReturn:
    os.write(2, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(code)


def interrupt_of(error: BaseException, raised: list[KeyboardInterrupt]) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that led to ``error``: itself, its cause, or the first of those that :func:`signals` raised."""
    seen: list[BaseException] = []  # what two threads raise again can lead back to itself
    while error is not None and not any(error is other for other in seen):
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return raised[0] if raised else None


def refusal_of(error: BaseException) -> str:
    """A line on what the system refuses, such as a name that is too long or a full disk; "" for any other error."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{name}{error.strerror}; {REFUSALS[error.errno]}"
    return ""


def tell_error(program: str, error: BaseException) -> int | None:
    """Prints what ``error`` says and returns the exit code, 2 or 75 (lumina_jax/faults.py); None for a bug, which says nothing.

    A failed device has its traceback too.
    """
    from lumina_jax.faults import exit_code, is_device_failure, restart_advice

    code = exit_code(error)
    message = str(error) if isinstance(error, UserError) else refusal_of(error)
    if code == RESTART:
        if is_device_failure(error):
            traceback.print_exception(error)
        message = f"{message or type(error).__name__ + ': ' + str(error)}; {restart_advice(error)}"
    if not message:
        return None
    print(f"{program}: {as_called(printable(message))}", file=sys.stderr)
    return code


def tell_interrupt(program: str, interrupt: KeyboardInterrupt, keeps: str = "") -> int:
    """Prints the one line of an interrupt, with its innermost note (errors.interrupted) or ``keeps``; returns the exit code."""
    line, code = _last_words(program, interrupt, keeps)
    print(line, file=sys.stderr, flush=True)
    return code


def _last_words(program: str, interrupt: KeyboardInterrupt, keeps: str) -> tuple[str, int]:
    terminated = isinstance(interrupt, Terminated)
    note = [*getattr(interrupt, "__notes__", []), keeps][0]
    line = f"{program}: {'terminated' if terminated else 'interrupted'}" + f"; {note}" * bool(note)
    return as_called(printable(line)), TERMINATED if terminated else INTERRUPTED


def say(line: object) -> None:
    """Prints a line on stdout, with escapes for what is no letter in the names that it holds."""
    print(printable(str(line)), flush=True)


def prepare_streams() -> None:
    """Lets stdout and stderr show what their encoding lacks as escapes, and each line at once, also in a pipe or a file.

    The clients of stores log each error that they raise with its traceback; it is told once, in one line.
    """
    for name in CLIENTS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def leave(main: Callable[[], int]) -> NoReturn:
    """Runs ``main`` and ends the process with its code; after a signal without waiting for threads that still read or compile.

    A Ctrl-C that comes when the work is done changes nothing.
    """
    code = None
    try:
        try:
            code = main()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            at_once = code in (INTERRUPTED, TERMINATED, RESTART)
        except SystemExit as end:
            code, at_once = end.code, False
        print(end="", flush=True)
    except KeyboardInterrupt as interrupt:
        code, at_once = tell_interrupt(program_name(), interrupt), True
    except BrokenPipeError:
        code, at_once = BROKEN_PIPE, True
    except OSError as error:  # stdout is a file on a full disk
        if not (message := refusal_of(error)):
            raise
        if not code:  # else main has said it
            print(f"{program_name()}: {message}", file=sys.stderr)
        code, at_once = 2, True
    if at_once:
        os._exit(code)
    sys.exit(code)
