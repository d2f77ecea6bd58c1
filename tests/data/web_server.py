"""A web server on this machine that behaves as the servers of a list of picture URLs do."""

import asyncio
import gzip
import io
import threading
from collections import Counter

from data_parts import noise

BIG = 100 * 10**9
"""Bytes that /huge announces."""

TLS = b"\x16"
"""How the request of a client begins that takes this for a safe server."""


def png(number: int) -> bytes:
    """A picture of its own for each number."""
    content = io.BytesIO()
    noise((24, 16), number).save(content, "PNG")
    return content.getvalue()


class PictureServer:
    """Answers ``/BEHAVIOUR/NUMBER`` with png(NUMBER) in one of its ways, which are its methods; ``requests`` counts by path.

    ``slow`` sends its picture in pieces over ``seconds``; ``busy`` and ``flaky`` refuse the first request for each path.
    """

    def __init__(self, seconds: float = 0.2, host: str = "127.0.0.1"):
        self.requests: Counter[str] = Counter()
        self._seconds, self._host = seconds, host
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> "PictureServer":
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = self._do(asyncio.start_server(self._serve, self._host, 0, backlog=1024))
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"http://[{self._host}]:{port}" if ":" in self._host else f"http://{self._host}:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.read(1)
            if request == TLS:
                await reader.read(1 << 16)
                return await self.garbage(writer, 0, "")
            request += await reader.readuntil(b"\r\n\r\n")
            path = request.split()[1].decode()
            self.requests[path] += 1
            _, behaviour, number = path.partition("?")[0].split("/", 2)
            await getattr(self, behaviour)(writer, int(number), path)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone, as it may
        finally:
            writer.close()

    async def _answer(
        self, writer, content: bytes, status: str = "200 OK", length: int | None = -1, **headers: str
    ) -> None:
        length = len(content) if length == -1 else length
        lines = [
            f"HTTP/1.1 {status}",
            "Connection: close",
            *(f"{key.replace('_', '-')}: {headers[key]}" for key in headers),
        ]
        lines += [] if length is None else [f"Content-Length: {length}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()

    async def fast(self, writer, number, path):
        await self._answer(writer, png(number))

    async def slow(self, writer, number, path):
        content = png(number)
        await self._answer(writer, b"", length=len(content))
        for start in range(0, len(content), 200):
            writer.write(content[start : start + 200])
            await writer.drain()
            await asyncio.sleep(self._seconds * 200 / len(content))

    async def silent(self, writer, number, path):
        await asyncio.sleep(1000)

    async def drip(self, writer, number, path):
        await self._answer(writer, b"", length=1000)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    async def endless(self, writer, number, path):
        await self._answer(writer, b"", length=None)
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def huge(self, writer, number, path):
        await self._answer(writer, bytes(1000), length=BIG)
        await asyncio.sleep(1000)

    async def cut(self, writer, number, path):
        await self._answer(writer, png(number)[:-50], length=len(png(number)))

    async def chunkcut(self, writer, number, path):
        await self._answer(writer, b"40\r\n" + bytes(30), length=None, Transfer_Encoding="chunked")

    async def closing(self, writer, number, path):
        pass

    async def redirect(self, writer, number, path):
        await self._answer(writer, b"", "302 Found", Location=f"/fast/{number}")

    async def loop(self, writer, number, path):
        await self._answer(writer, b"", "301 Moved Permanently", Location=path)

    async def file(self, writer, number, path):
        await self._answer(writer, b"", "302 Found", Location="file:///etc/passwd")

    async def missing(self, writer, number, path):
        await self._answer(writer, b"<p>none", "404 Not Found")

    async def gone(self, writer, number, path):
        await self._answer(writer, b"", "410 Gone")

    async def forbidden(self, writer, number, path):
        await self._answer(writer, b"", "403 Forbidden")

    async def busy(self, writer, number, path):
        if self.requests[path] > 1:
            return await self.fast(writer, number, path)
        return await self._answer(writer, b"", "429 Too Many Requests", Retry_After="0")

    async def closed(self, writer, number, path):
        await self._answer(writer, b"", "503 Service Unavailable", Retry_After="3600")

    async def flaky(self, writer, number, path):
        if self.requests[path] > 1:
            return await self.fast(writer, number, path)
        return await self._answer(writer, b"", "503 Service Unavailable")

    async def html(self, writer, number, path):
        await self._answer(writer, b"<!DOCTYPE html><html><body>Sign in</body></html>", Content_Type="text/html")

    async def unsized(self, writer, number, path):
        await self._answer(writer, png(number), length=None)

    async def zipped(self, writer, number, path):
        await self._answer(writer, gzip.compress(png(number)), Content_Encoding="gzip")

    async def zipcut(self, writer, number, path):
        await self._answer(writer, gzip.compress(png(number))[:-9], Content_Encoding="gzip")

    async def bomb(self, writer, number, path):
        await self._answer(writer, gzip.compress(bytes(1 << 24)), Content_Encoding="gzip")

    async def garbage(self, writer, number, path):
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        await writer.drain()
