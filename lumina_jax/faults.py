"""Which errors pass by themselves, how often to try again, and with what code a process ends by those that stay."""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from lumina_jax.errors import UserError
from lumina_jax.progress import duration, print_line

EXIT_ERROR, EXIT_RESTART = 2, 75
"""Exit codes: something must be mended before a restart; a restart goes on from the newest checkpoint (EX_TEMPFAIL)."""

ATTEMPTS = 7
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between the first two attempts, doubled each time, and the most: 32 seconds in all."""

TRANSIENT_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "EAGAIN", "EBUSY", "EINTR"),
        *("ETIMEDOUT", "EADDRINUSE", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENOTCONN", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
)
"""What a disk, a mount or a network says that may work again in a moment."""
TRANSIENT_STATUS = frozenset((408, 425, 429, *range(500, 600)))
"""HTTP: too slow, too early, too many requests, and whatever the server says of itself."""
TRANSIENT_WORDS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
"""How the messages of TensorStore and gRPC begin that say the same."""
TRANSIENT_ERRORS = (
    *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
    *("ChunkedEncodingError", "ConnectionError", "Timeout"),  # requests, by which gcsfs also says 502
    *("HTTPClientError", "IncompleteReadError"),  # botocore
    "TransportError",  # google.auth
)
"""Classes of the clients of stores for a connection that was not made or broke off; they are not those of Python."""
PROGRESS_VARIABLE = "LUMINA_PROGRESS_FILE"
"""The environment variable of a local file by which the restart loop knows whether a start got any further."""
DEVICE_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")
LASTING_WORDS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
"""How the messages of device errors begin that come again at each start: out of memory, and programs that cannot run."""

Result = TypeVar("Result")


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ``error`` ends: EXIT_RESTART where a restart may help, EXIT_ERROR elsewhere."""
    return EXIT_RESTART if is_transient(error) or is_device_failure(error) else EXIT_ERROR


def is_transient(error: BaseException) -> bool:
    """Whether ``error``, or what it was raised from, may pass by itself: of a disk, a store or the network."""
    return any(map(_is_transient, _causes(error)))


def is_device_failure(error: BaseException) -> bool:
    """Whether a device, or the connection between devices, failed: JAX's runtime error, but for memory and wrong programs."""
    return any(_is_device_error(cause) and not str(cause).startswith(LASTING_WORDS) for cause in _causes(error))


def retried(call: Callable[[], Result], what: str, pause: Callable[[float], None] = time.sleep) -> Result:
    """``call()``, again after transient errors, with growing pauses; ``what`` begins the line that each of them prints, which says
    an error in full the first time.

    The pauses are random by half, so that many hosts do not come back at once. After ATTEMPTS the last error is raised.
    """
    said = ""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            seconds = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
            reason = "the same" if str(error) == said else str(error)
            print_line(f"{what}: {reason}; attempt {attempt + 1} of {ATTEMPTS} in {duration(seconds)}")
            said = str(error)
            pause(seconds)
    return call()


def restart_advice(error: BaseException) -> str:
    """One line on why a process that ``error`` ends may be started again."""
    kind = "a device failed" if is_device_failure(error) else "a disk, a store or the network failed"
    return f"{kind}; give the same command again, which goes on from what is finished (exit code {EXIT_RESTART})"


def note_progress(text: str) -> None:
    """Writes how far this process came into the file that PROGRESS_VARIABLE names, if it does (pods/restart.sh).

    The file is the restart loop's: one that cannot be written is no reason to end a run.
    """
    if path := os.environ.get(PROGRESS_VARIABLE):
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(text)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []  # what two threads raise again can lead back to itself
    while error is not None and not any(error is other for other in seen):
        yield error
        seen.append(error)
        error = error.__cause__


def _is_transient(error: BaseException) -> bool:
    # A broken pipe is nobody who reads what is printed any more.
    if not isinstance(error, Exception) or isinstance(error, BrokenPipeError) or _is_device_error(error):
        return False
    if isinstance(error, OSError) and error.errno in TRANSIENT_NUMBERS:
        return True
    if isinstance(error, TimeoutError):
        return True
    if any(kind.__name__ in TRANSIENT_ERRORS for kind in type(error).__mro__):
        return True
    status = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    if any(isinstance(number, int) and number in TRANSIENT_STATUS for number in status):
        return True
    return not isinstance(error, UserError) and str(error).startswith(TRANSIENT_WORDS)


def _is_device_error(error: BaseException) -> bool:
    # By name, so that nothing here waits for JAX.
    return any(kind.__name__ in DEVICE_ERRORS for kind in type(error).__mro__)
