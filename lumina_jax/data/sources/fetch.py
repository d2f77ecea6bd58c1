"""Fetches the pictures of records from web servers. Every fetch has a bound in time, bytes, attempts and redirects.

All threads of a process share one event loop, where thousands of fetches may wait. Errors name the URL without its secrets:
MissingFileError for 404 and 410, InputError for what is no URL, else StorageError.
"""

import asyncio
import atexit
import email.utils
import functools
import os
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import aiohttp
from yarl import URL

from lumina_jax.data.sources.hosts import HOSTS
from lumina_jax.data.sources.urls import host_of, parse_url, shown
from lumina_jax.errors import InputError, MissingFileError, StorageError, UserError

REDIRECTS = 10
REDIRECT_STATUS = (301, 302, 303, 307, 308)
MISSING_STATUS = (404, 410)
TEMPORARY_STATUS = (408, 425, 429)
"""The HTTP status codes from 400 to 499 after which a request is repeated; all from 500 on are."""
SMALL = 1 << 22
LARGE_AT_ONCE = 32
"""Of the files above SMALL bytes only so many grow at a time, which bounds the memory."""
RESOLVERS = 64
"""Threads that resolve host names. A name server that is silent holds one for up to a minute."""
HEADERS = {
    "User-Agent": "lumina_jax (pictures of a data set)",
    "Accept": "image/*, */*;q=0.5",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True)
class FetchLimits:
    """The bounds of one fetch: ``seconds`` for all of it, with redirects and repetitions; ``max_bytes`` of content.

    A third of the time may pass until a connection stands, and two thirds without a byte. After a failure that may be temporary
    the request is repeated, up to ``attempts`` in all, after ``pause`` seconds, doubled each time, or as Retry-After asks.
    """

    seconds: float = 15.0
    max_bytes: int = 32 << 20
    attempts: int = 4
    pause: float = 0.5

    @property
    def connect(self) -> float:
        """Seconds until a connection stands, with the look-up of the host's name."""
        return self.seconds / 3

    @property
    def silence(self) -> float:
        """Seconds without a byte."""
        return self.seconds * 2 / 3


DEFAULT_LIMITS = FetchLimits()
LIMITS: ContextVar[FetchLimits] = ContextVar("limits", default=DEFAULT_LIMITS)
"""The bounds of the fetches of this thread."""


@contextmanager
def fetching_within(limits: FetchLimits) -> Iterator[None]:
    """Fetches of this thread in the block keep to ``limits``."""
    token = LIMITS.set(limits)
    try:
        yield
    finally:
        LIMITS.reset(token)


def fetch(url: str) -> bytes:
    """The content at an http(s) URL, within the bounds of LIMITS. Safe to call from many threads at once."""
    limits, text = LIMITS.get(), url.strip()
    address = parse_url(text)
    client = _client(os.getpid())
    try:
        content, encoding = asyncio.run_coroutine_threadsafe(client.fetch(address, limits), client.loop).result()
        return _decompressed(content, encoding, limits.max_bytes)
    except _FetchFailure as failure:
        attempts = f" (attempt {failure.attempt})" if failure.attempt > 1 else ""
        raise failure.kind(f"{shown(text)}: {failure}{attempts}", cause=failure.cause) from failure.__cause__


class _FetchFailure(Exception):
    """Why an attempt failed. ``connected``: whether the host took the connection; None if it answered."""

    attempt = 1

    def __init__(
        self,
        reason: str,
        cause: str,
        kind: type[UserError] = StorageError,
        repeat: bool = False,
        wait: float | None = None,
        connected: bool | None = None,
    ):
        super().__init__(reason)
        self.cause, self.kind, self.repeat, self.wait, self.connected = cause, kind, repeat, wait, connected


@dataclass
class _Progress:
    """How far an attempt has come."""

    host: str
    answered: bool = False
    received: int = 0

    def failure(self, error: Exception, limits: FetchLimits) -> _FetchFailure:
        """What ``error``, raised by the HTTP client, means."""
        host, connected = self.host, None if self.answered else True
        match error:
            case _FetchFailure():
                return error
            case aiohttp.ClientConnectorDNSError():
                unknown = error.os_error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
                reason = f"the name {host} has no address: {error.os_error.strerror or error.os_error}"
                return _FetchFailure(reason, "unknown host", repeat=not unknown, connected=False)
            case aiohttp.ClientSSLError() | aiohttp.ClientConnectorCertificateError():
                reason = f"no safe connection to {host}: {error.__cause__ or error}"
                return _FetchFailure(reason, "no safe connection (TLS)", connected=False)
            case aiohttp.ConnectionTimeoutError():
                reason = f"{host} took no connection within {limits.connect:g} s"
                return _FetchFailure(reason, "no connection in time", connected=False)
            case aiohttp.ClientConnectorError():
                reason = f"no connection to {host}: {error.os_error.strerror or repr(error.os_error)}"
                return _FetchFailure(reason, "no connection", repeat=True, connected=False)
            case aiohttp.SocketTimeoutError():
                reason = f"{host} sent nothing for {limits.silence:g} s, after {self.received} bytes"
                return _FetchFailure(reason, "a silent server", connected=connected)
            case TimeoutError():
                reason = f"{self.received} bytes came in {limits.seconds:g} s, and not all; allow more time, or fetch fewer at once"
                return _FetchFailure(reason, "not complete in time", connected=connected)
            case aiohttp.ClientPayloadError():
                reason = f"it ended early, after {self.received} bytes"
                return _FetchFailure(reason, "ended early", repeat=True)
            case aiohttp.ServerDisconnectedError() | ConnectionError() | aiohttp.ClientOSError():
                reason = f"{host} closed the connection after {self.received} bytes"
                return _FetchFailure(reason, "connection closed", repeat=True, connected=connected)
            case InputError():
                return _FetchFailure(f"it is redirected: {error}", error.cause, InputError)
            case aiohttp.InvalidURL() | ValueError():
                return _FetchFailure(f"no URL: {error}", "no URL", InputError)
            case _:
                message = getattr(error, "message", "") or error
                return _FetchFailure(f"{host} does not answer as a web server: {message}", "no web server")


class _Client:
    """A session of the HTTP client and the event loop that it lives in, which runs in a thread of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(RESOLVERS, "resolve"))
        threading.Thread(target=self.loop.run_forever, name="fetch", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._open(), self.loop).result()
        atexit.register(self._close, os.getpid())

    async def _open(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._session = aiohttp.ClientSession(
            # Idle connections are closed soon: the pictures of one data set may lie on a million hosts.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            auto_decompress=False,
            trust_env=True,
        )

    def _close(self, process: int) -> None:
        if process == os.getpid():
            asyncio.run_coroutine_threadsafe(self._session.close(), self.loop).result(1.0)

    async def fetch(self, url: URL, limits: FetchLimits) -> tuple[bytes, str]:
        """(the body, its Content-Encoding) at ``url``."""
        deadline = self.loop.time() + limits.seconds
        for attempt in range(1, limits.attempts + 1):
            progress = _Progress(host_of(url))
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._attempt(url, limits, progress)
            except (aiohttp.ClientError, OSError, ValueError, _FetchFailure) as error:
                failure = progress.failure(error, limits)
                wait = limits.pause * 2 ** (attempt - 1) if failure.wait is None else failure.wait
                if failure.repeat and attempt < limits.attempts and self.loop.time() + wait < deadline:
                    await asyncio.sleep(wait)
                    continue
                if failure.connected is not None:
                    HOSTS.failed(progress.host, str(failure), failure.connected)
                failure.attempt = attempt
                raise failure from (None if failure is error else error)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, url: URL, limits: FetchLimits, progress: _Progress) -> tuple[bytes, str]:
        timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect, sock_read=limits.silence)
        for _ in range(REDIRECTS + 1):
            progress.host, progress.answered = host_of(url), False
            if reason := HOSTS.reason_to_skip(progress.host):
                raise _FetchFailure(reason, "a host that does not answer is skipped")
            async with self._session.get(url, allow_redirects=False, timeout=timeout) as response:
                HOSTS.answered(progress.host)
                progress.answered = True
                location = response.headers.get("Location")
                if response.status not in REDIRECT_STATUS or not location:
                    _check_status(response)
                    return await self._body(response, limits, progress), response.headers.get("Content-Encoding", "")
                url = parse_url(location, url)
        raise _FetchFailure(f"it is redirected more than {REDIRECTS} times", "too many redirects")

    async def _body(self, response: aiohttp.ClientResponse, limits: FetchLimits, progress: _Progress) -> bytes:
        _check_size(response.content_length or 0, limits.max_bytes)
        content = bytearray()
        async with AsyncExitStack() as stack:
            large = False
            async for chunk in response.content.iter_any():
                content += chunk
                progress.received = len(content)
                _check_size(len(content), limits.max_bytes)
                if not large and len(content) > SMALL:
                    await stack.enter_async_context(self._large)
                    large = True
        return bytes(content)


@functools.cache
def _client(process: int) -> _Client:
    """The client of a process: the thread of its loop does not survive a fork."""
    return _Client()


def _check_status(response: aiohttp.ClientResponse) -> None:
    status, reason = response.status, f"the server answers {response.status} {response.reason or ''}".rstrip()
    if 200 <= status < 300:
        return
    if status in MISSING_STATUS:
        raise _FetchFailure(f"not found ({reason})", "not found", MissingFileError)
    repeat = status in TEMPORARY_STATUS or status >= 500
    wait = _seconds(response.headers.get("Retry-After", "")) if repeat else None
    asks = "" if wait is None else f" and asks to wait {wait:g} s"
    raise _FetchFailure(f"{reason}{asks}", f"HTTP status {status}", repeat=repeat, wait=wait)


def _seconds(retry_after: str) -> float | None:
    """What Retry-After says, a number of seconds or a date, in seconds from now."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise _FetchFailure(
            f"it has more than {limit / (1 << 20):g} MB; allow more with data.fetch_mb, or give a local file",
            "larger than data.fetch_mb",
        )


def _decompressed(content: bytes, encoding: str, limit: int) -> bytes:
    """A body as its Content-Encoding says, of at most ``limit`` bytes."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _FetchFailure(f"its Content-Encoding {encoding!r} was not asked for", "unknown Content-Encoding")
    raw = encoding == "deflate" and content[:1] and content[0] & 15 != zlib.DEFLATED
    unpacked = bytearray()
    try:
        while content:
            part = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
            unpacked += part.decompress(content, limit + 1 - len(unpacked))
            _check_size(len(unpacked), limit)
            if not part.eof:
                raise _FetchFailure(f"it ended early: its {encoding} stream is cut", "ended early")
            content = part.unused_data
    except zlib.error as error:
        raise _FetchFailure(f"its {encoding} stream is damaged: {error}", "damaged Content-Encoding") from error
    return bytes(unpacked)
