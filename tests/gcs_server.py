"""A server of the JSON protocol of Google Cloud Storage on this machine, which can fail as networks and stores do.

gcsfs and TensorStore (so Orbax too) talk to it once :attr:`GcsServer.environment` is set, in this process and in others::

    with GcsServer() as store:
        store.buckets.make("bucket")
        store.faults.append(GcsFault("GET .*tokens", status=503, times=2))

Alone, ``python tests/gcs_server.py BUCKET`` serves until it is stopped and prints the environment as JSON.
"""

import asyncio
import itertools
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from aiohttp import web
from gcs_objects import Buckets, GcsError, StoredObject

PATH = re.compile(
    r"(?P<kind>/upload|/download)?/storage/v1/b(/(?P<bucket>[^/]+)(?P<o>/o(/(?P<name>[^/]+)(?P<verb>/.+)?)?)?)?/?"
)
BATCH = "/batch/storage/v1"
CONTROL = "/control"
"""Where another process sets faults: a POST of {"faults": [...], "latency": seconds, "stale": bool}; a GET gives the counts."""


@dataclass
class GcsFault:
    """What happens to the next ``times`` requests (-1: to all) whose "METHOD path?query", unquoted, matches ``match``.

    The first ``skip`` of them pass. ``status`` answers with it; ``seconds`` waits before the answer (a client's time-out, or a
    slow store); ``cut`` sends that share of the body and closes; ``reset`` closes without an answer, ``late`` after doing it.
    """

    match: str
    status: int = 0
    seconds: float = 0.0
    cut: float | None = None
    reset: bool = False
    late: bool = False
    times: int = 1
    skip: int = 0

    def takes(self, request: str) -> bool:
        """Whether this request fails; counts it."""
        if self.times == 0 or not re.search(self.match, request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1 if self.times > 0 else 0
        return True


class GcsServer:
    """The server, in a thread of this process while its with-block runs.

    ``latency`` seconds pass before each answer. ``requests`` counts them by "METHOD path" and ``sent`` is the number of bytes of
    content that were read.
    """

    def __init__(self, latency: float = 0.0, port: int = 0):
        self.buckets, self.faults, self.latency = Buckets(), [], latency
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self._port, self._uploads, self._numbers = port, {}, itertools.count(1)
        self._loop = asyncio.new_event_loop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find the server, and look for no credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks by gRPC what kind of bucket this is
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
            "NO_GCE_CHECK": "true",
        }

    def __enter__(self) -> "GcsServer":
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = self._do(self._start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def clear(self) -> None:
        """Forgets faults, latency and counts."""
        self.faults, self.latency, self.sent = [], 0.0, 0
        self.requests.clear()
        self.buckets.thaw_listings()

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, backlog=4096).start()
        return runner

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        text = f"{request.method} {unquote(request.raw_path)}"
        if request.path == CONTROL:
            return await self._control(request)
        self.requests[text.partition("?")[0]] += 1
        fault = next((fault for fault in self.faults if fault.takes(text)), None) or GcsFault("")
        await asyncio.sleep(self.latency + fault.seconds)
        if fault.reset and not fault.late:
            return _closed(request)
        if fault.status:
            return self._refusal(GcsError(fault.status, "The service is not available."))
        try:
            response = await self._answer(request)
        except GcsError as error:
            response = self._refusal(error)
        if fault.late:
            return _closed(request)
        if fault.cut is not None and isinstance(response.body, bytes):
            return await _cut(request, response, fault.cut)
        return response

    def _refusal(self, error: GcsError) -> web.Response:
        """An error as the protocol tells it."""
        if error.status == 304:
            return web.Response(status=304)
        return web.json_response({"error": {"code": error.status, "message": str(error)}}, status=error.status)

    async def _control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            orders = await request.json()
            self.clear()
            self.faults, self.latency = (
                [GcsFault(**fault) for fault in orders.get("faults", [])],
                orders.get("latency", 0.0),
            )
            if orders.get("stale"):
                self.buckets.freeze_listings()
        return web.json_response({"requests": self.requests, "sent": self.sent})

    async def _answer(self, request: web.Request) -> web.Response:
        if urlsplit(request.raw_path).path.rstrip("/") == BATCH:
            return self._batch(await request.read(), request.headers["Content-Type"])
        parts = PATH.fullmatch(urlsplit(request.raw_path).path)
        if not parts:
            raise GcsError(400, f"{request.method} {request.raw_path} is no request of this protocol")
        bucket, name = (unquote(parts[key]) if parts[key] else "" for key in ("bucket", "name"))
        query, method = dict(request.query), request.method
        if parts["kind"] == "/upload":
            return await self._upload(request, bucket, query)
        if not parts["o"]:
            return await self._bucket(request, bucket)
        if not name:
            return web.json_response(self.buckets.listing(bucket, query))
        if parts["verb"]:
            return await self._between(request, bucket, name, unquote(parts["verb"]), parts["verb"])
        if method == "DELETE":
            self.buckets.delete(bucket, name, query)
            return web.Response(status=204)
        if method in ("PATCH", "PUT"):
            return _json(bucket, self.buckets.patch(bucket, name, query, await request.json()))
        found = self.buckets.get(bucket, name, query)
        return self._content(request, found) if query.get("alt") == "media" else _json(bucket, found)

    async def _bucket(self, request: web.Request, bucket: str) -> web.Response:
        if request.method == "POST":
            bucket = (await request.json())["name"]
            self.buckets.make(bucket)
        elif request.method == "DELETE":
            self.buckets.remove(bucket)
            return web.Response(status=204)
        elif not bucket:
            names = [{"kind": "storage#bucket", "name": name} for name in self.buckets.names()]
            return web.json_response({"kind": "storage#buckets", "items": names})
        self.buckets.objects(bucket)
        about = {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US", "storageClass": "STANDARD"}
        return web.json_response(about)

    async def _between(self, request: web.Request, bucket: str, name: str, verb: str, raw: str) -> web.Response:
        """compose, rewriteTo, copyTo and moveTo."""
        query = dict(request.query)
        if verb == "/compose":
            sources = (await request.json())["sourceObjects"]
            return _json(bucket, self.buckets.compose(bucket, name, sources, query))
        _, kind, *where = raw.split("/")
        target = (bucket, unquote(where[1])) if kind == "moveTo" else (unquote(where[1]), unquote(where[3]))
        copy = self.buckets.copy((bucket, name), target, query)
        if kind == "rewriteTo":
            about = {"kind": "storage#rewriteResponse", "done": True, "objectSize": str(len(copy.data))}
            return web.json_response({**about, "resource": copy.resource(target[0])})
        if kind == "moveTo" and target != (bucket, name):
            self.buckets.delete(bucket, name, {})
        return _json(target[0], copy)

    def _content(self, request: web.Request, found: StoredObject) -> web.Response:
        """The content of an object, or the span of it that a Range header asks for."""
        size, status, data = len(found.data), 200, found.data
        headers = {
            "x-goog-generation": str(found.generation),
            "x-goog-metageneration": str(found.metageneration),
            "x-goog-hash": ",".join(f"{name}={value}" for name, value in found.hashes.items()),
            "ETag": f'"{found.generation}"',
            "Content-Type": found.content_type,
        }
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "")):
            first, last = span.groups()
            start = int(first) if first else max(size - int(last), 0)
            stop = min(int(last) + 1, size) if first and last else size
            if start >= size:
                raise GcsError(416, f"The requested range cannot be satisfied: {start} of {size}")
            data, status = data[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.sent += len(data)
        return web.Response(body=data, status=status, headers=headers)

    async def _upload(self, request: web.Request, bucket: str, query: dict[str, str]) -> web.Response:
        kind = query.get("uploadType")
        if "upload_id" in query:
            return await self._resume(request, query["upload_id"])
        if kind == "resumable":
            text = await request.read()
            about = json.loads(text) if text else {}
            number = str(next(self._numbers))
            self.buckets.objects(bucket)
            self._uploads[number] = (bucket, query.get("name") or about["name"], query, about, bytearray())
            where = f"{self.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return web.Response(headers={"Location": where})
        if kind == "multipart":
            about, data = _two_parts(await request.read(), request.headers["Content-Type"])
        else:
            about, data = {}, await request.read()
        name = query.get("name") or about["name"]
        content_type = about.get("contentType", request.content_type if kind == "media" else "application/octet-stream")
        stored = self.buckets.put(
            bucket, name, data, query, content_type=content_type, metadata=about.get("metadata", {})
        )
        return _json(bucket, stored)

    async def _resume(self, request: web.Request, number: str) -> web.Response:
        """A chunk of a resumable upload, or the question of how far it came."""
        if number not in self._uploads:
            raise GcsError(404, f"No upload {number}")
        if request.method == "DELETE":
            del self._uploads[number]
            return web.Response(status=499)
        bucket, name, query, about, received = self._uploads[number]
        data = await request.read()
        span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("Content-Range", ""))
        start, total = (span[1], span[3]) if span else ("0", str(len(data)))
        if start is not None:
            if int(start) > len(received):
                raise GcsError(400, f"Upload {number} has {len(received)} bytes, and the chunk begins at {start}")
            received[int(start) :] = data
        if total != "*" and len(received) == int(total):
            stored = self.buckets.put(bucket, name, bytes(received), query, metadata=about.get("metadata", {}))
            return _json(bucket, stored)
        return web.Response(status=308, headers={"Range": f"bytes=0-{len(received) - 1}"} if received else {})

    def _batch(self, body: bytes, content_type: str) -> web.Response:
        """Several deletions in one request."""
        boundary = content_type.partition("boundary=")[2].strip('"')
        answers = []
        for address in re.findall(rb"DELETE (\S+) HTTP/1.1", body):
            parts, status = urlsplit(address.decode()), "204 No Content"
            place = PATH.fullmatch(parts.path)
            try:
                self.buckets.delete(unquote(place["bucket"]), unquote(place["name"]), dict(parse_qsl(parts.query)))
            except GcsError as error:
                status = f"{error.status} {error}"
            answers.append(f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n")
        text = "".join(answers) + f"--{boundary}--"
        return web.Response(text=text, headers={"Content-Type": f"multipart/mixed; boundary={boundary}"})


def _json(bucket: str, stored: StoredObject) -> web.Response:
    return web.json_response(stored.resource(bucket))


def _closed(request: web.Request) -> web.Response:
    """Closes the connection without an answer."""
    request.transport.abort()
    return web.Response()


async def _cut(request: web.Request, response: web.Response, share: float) -> web.StreamResponse:
    """Sends ``share`` of the body that the headers announce, and closes."""
    part = web.StreamResponse(status=response.status, headers=response.headers)
    part.content_length = len(response.body)
    await part.prepare(request)
    await part.write(response.body[: int(share * len(response.body))])
    request.transport.close()
    return part


def _two_parts(body: bytes, content_type: str) -> tuple[dict, bytes]:
    """The JSON and the content of a multipart/related body; lines may end in LF alone."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip("\"'").encode()
    _, about, rest = body.split(boundary, 2)
    head = re.search(rb"\r?\n\r?\n", rest)
    end = rest.rindex(b"\n" + boundary)
    data = rest[head.end() : end]
    return json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1]), data.removesuffix(b"\r") if b"\r\n" in head[
        0
    ] else data


def main() -> None:
    with GcsServer() as server:
        for bucket in sys.argv[1:]:
            server.buckets.make(bucket)
        print(json.dumps(server.environment), flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
