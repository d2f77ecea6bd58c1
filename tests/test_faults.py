"""Errors that pass by themselves are tried again, and end a process with the code that restarts it; others with the code 2."""

import errno

import aiohttp
import jax
import pytest
import requests

from lumina_jax import faults
from lumina_jax.cli import ending
from lumina_jax.errors import InputError, StorageError
from lumina_jax.faults import ATTEMPTS, EXIT_ERROR, EXIT_RESTART, exit_code, is_transient, retried
from lumina_jax.storage import storage_errors

pytestmark = pytest.mark.smoke


class ServerError(Exception):
    """As the clients of stores raise it, with a status of HTTP."""

    def __init__(self, code: int):
        super().__init__(f"status {code}")
        self.code = code


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        *map(ServerError, (408, 429, 500, 503)),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("cut short"),
        requests.exceptions.ProxyError("502"),
        ValueError("UNAVAILABLE: CURL error"),
        jax.errors.JaxRuntimeError("INTERNAL: the chip does not answer"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: slice 1 is gone"),
    ],
    ids=repr,
)
def test_faults_that_pass_end_with_the_code_of_a_restart(error):
    assert exit_code(error) == EXIT_RESTART == ending.RESTART


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        InputError("UNAVAILABLE=1; give 2"),
        *map(ServerError, (400, 403, 404)),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such compile option"),
        SystemExit(503),
    ],
    ids=repr,
)
def test_what_comes_again_ends_with_the_code_of_an_error(error):
    assert exit_code(error) == EXIT_ERROR and not is_transient(error)


def test_the_cause_of_an_error_decides():
    with pytest.raises(StorageError) as caught, storage_errors("gs://bucket/x"):
        raise OSError(errno.EIO, "Input/output error")
    assert exit_code(caught.value) == EXIT_RESTART


def test_a_transient_error_is_tried_again_with_growing_pauses(capsys):
    calls, pauses = [], []

    def read() -> str:
        calls.append(None)
        if len(calls) < 4:
            raise OSError(errno.EIO, "Input/output error")
        return "content"

    assert retried(read, "reading x", pauses.append) == "content"
    assert len(calls) == 4
    assert all(0.5 * 2**n <= 2 * seconds <= 2 * 0.5 * 2**n for n, seconds in enumerate(pauses))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("reading x: [Errno 5] Input/output error; attempt 2 of 7 in ")
    assert lines[2].startswith("reading x: the same; attempt 4 of 7 in ")


def test_after_all_attempts_the_error_is_raised_and_a_lasting_one_at_once():
    pauses = []
    for error, expected in ((TimeoutError("slow"), ATTEMPTS - 1), (FileNotFoundError("gone"), 0)):
        pauses.clear()

        def read(error=error):
            raise error

        with pytest.raises(type(error)):
            retried(read, "reading", pauses.append)
        assert len(pauses) == expected
    assert max(pauses, default=0) <= faults.LONGEST_PAUSE


def test_errors_that_lead_back_to_themselves_are_told():
    first, second = ValueError("raised"), RuntimeError("raised again by another thread")
    first.__cause__, second.__cause__ = second, first
    assert exit_code(first) == EXIT_ERROR and ending.interrupt_of(first, []) is None
    interrupt = KeyboardInterrupt()
    assert ending.interrupt_of(second, [interrupt]) is interrupt
