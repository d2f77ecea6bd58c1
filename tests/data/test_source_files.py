"""Laws of reading bytes: local and remote files read alike, by byte ranges, from any server; errors name the file."""

import http.server
import json
import os
import threading
from functools import partial
from urllib.parse import parse_qs, unquote, urlparse

import fsspec
import numpy as np
import pytest
from data_parts import noise

from lumina_jax.data.sources import files, open_source
from lumina_jax.data.sources.fetch import FetchLimits, fetching_within
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.text_file import REMOTE_BLOCK
from lumina_jax.errors import InputError

LETTERS = bytes(range(256)) * 40


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; supports byte ranges, unlike its parent, if ``ranges`` is set, and fails the first ``failures`` requests."""

    ranges = True
    failures = 0
    requests: list[str]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.requests.append(self.path)
        if type(self).failures:
            type(self).failures -= 1
            return self.send_error(503)
        if "refused" in self.path:
            return self.send_error(403)
        return self.answer(self.translate_path(self.path))

    def answer(self, path):
        if not os.path.isfile(path):
            return self.send_error(404)
        with open(path, "rb") as file:
            content = file.read()
        span = self.headers.get("Range", "") if self.ranges else ""
        self.send_response(206 if span else 200)
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            self.send_header("Content-Range", f"bytes {span.removeprefix('bytes=')}/{len(content)}")
            content = content[int(first) : int(last) + 1 if last else None]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None


class Bucket(Server):
    """The part of the interface of Google Cloud Storage that reads and lists one bucket."""

    def do_GET(self):
        url = urlparse(self.path)
        self.requests.append(self.path)
        name = unquote(url.path.partition("/o/")[2])
        if "alt=media" in url.query or "/download/" in url.path:
            return self.answer(os.path.join(self.directory, name))
        if name:
            return self.entry(name)
        prefix = parse_qs(url.query).get("prefix", [""])[0]
        entries = [self.described(name) for name, _ in files.listing(self.directory) if name.startswith(prefix)]
        return self.reply({"items": entries})

    def entry(self, name):
        if not os.path.isfile(os.path.join(self.directory, name)):
            return self.send_error(404)
        return self.reply(self.described(name))

    def described(self, name):
        size = os.stat(os.path.join(self.directory, name)).st_size
        return {"name": name, "bucket": "pod", "size": str(size), "id": name}

    def reply(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that serves ``tmp_path`` by a handler class -> (its URL, the handler)."""
    monkeypatch.setattr(files, "BLOCK_LIMITS", FetchLimits(pause=0.0))
    files.HOSTS.clear()
    servers = []

    def start(kind):
        handler = type(kind.__name__, (kind,), {"requests": [], "failures": 0})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(serve):
    pytest.importorskip("aiohttp")
    return serve(Server)


@pytest.fixture
def bucket(serve, monkeypatch):
    core = pytest.importorskip("gcsfs.core")
    address, handler = serve(Bucket)
    system = core.GCSFileSystem(token="anon", endpoint_url=address, project="none", skip_instance_cache=True)
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol: system)
    return "gs://pod", handler


def pictures(folder):
    """A JSONL of three captioned pictures: in its folder, in a subfolder, and missing."""
    (folder / "sub").mkdir()
    noise((12, 8), 0).save(folder / "a.png")
    noise((6, 10), 1).save(folder / "sub" / "b.png")
    lines = [{"image": name, "caption": name} for name in ("a.png", "./sub/b.png", "none.png")]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("span", [(0, None), (7, None), (0, 5), (300, 901), (10200, 99999)])
@pytest.mark.parametrize("kind", ["local", "memory", "web", "blunt", "bucket"])
def test_files_of_every_store_read_alike(tmp_path, kind, span, request):
    (tmp_path / "file").write_bytes(LETTERS)
    folder = str(tmp_path)
    if kind == "memory":
        folder = "memory://folder"
        fsspec.filesystem("memory").pipe_file("/folder/file", LETTERS)
    elif kind == "blunt":
        folder, handler = request.getfixturevalue("web")
        handler.ranges = False
    elif kind != "local":
        folder, _ = request.getfixturevalue(kind)
    path = files.join(folder, "file")
    assert files.size(path) == len(LETTERS)
    assert files.read(path, span[0], span[1] and min(span[1], len(LETTERS))) == LETTERS[span[0] : span[1]]
    assert b"".join(files.blocks(path, 1000)) == LETTERS
    assert files.folder_of(path) == folder


def test_records_and_images_come_over_http(tmp_path, web):
    pictures(tmp_path)
    remote, local = open_source(f"{web[0]}/data.jsonl"), open_source(str(tmp_path / "data.jsonl"))
    assert remote.fingerprint == local.fingerprint and len(remote) == 3
    for index in range(2):
        remote_record, local_record = remote[index], local[index]
        assert remote_record.caption == local_record.caption
        np.testing.assert_array_equal(np.asarray(remote_record.images[0]), np.asarray(local_record.images[0]))
    with pytest.raises(OSError, match=r"http://\S+/none\.png: not found"):
        remote[2]
    # The file is one block, which the first record requested.
    assert sum(path == "/data.jsonl" for path in web[1].requests) <= 5


def test_records_and_images_come_from_a_bucket(tmp_path, bucket):
    pictures(tmp_path)
    source = open_source("gs://pod/data.jsonl")
    assert [source[i].images[0].size for i in range(2)] == [(12, 8), (6, 10)]
    with pytest.raises(OSError, match=r"gs://pod/none\.png: not found"):
        source[2]
    assert [name for name, _ in files.listing("gs://pod")] == ["a.png", "data.jsonl", "sub/b.png"]
    assert files.expand("gs://pod/*.png") == ["gs://pod/a.png"]


def test_local_records_may_name_remote_images(tmp_path, web):
    pictures(tmp_path)
    (tmp_path / "far.jsonl").write_text(json.dumps({"image": f"{web[0]}/a.png", "caption": "x"}))
    assert open_source(str(tmp_path / "far.jsonl"))[0].images[0].size == (12, 8)


@pytest.mark.parametrize("read", [files.read_picture, partial(files.read, start=0, stop=len(LETTERS))])
def test_temporary_failures_are_repeated_and_refusals_are_not(tmp_path, web, read):
    (tmp_path / "file").write_bytes(LETTERS)
    address, handler = web
    with fetching_within(FetchLimits(pause=0.0)):
        handler.failures = 3
        assert read(f"{address}/file") == LETTERS
        handler.failures = 4
        with pytest.raises(OSError, match=r"/file: .*503.*attempt 4"):
            read(f"{address}/file")
        handler.requests.clear()
        with pytest.raises(OSError, match=r"/refused: .*403"):
            read(f"{address}/refused")
    assert len(handler.requests) == 1


def test_a_long_remote_file_is_read_in_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr("lumina_jax.data.sources.text_file.REMOTE_BLOCK", 50)
    question = {"from": "human", "value": "question " * 9}
    items = [{"conversations": [question, {"from": "gpt", "value": str(i)}]} for i in range(9)]
    fsspec.filesystem("memory").pipe_file("/long.jsonl", "\n".join(map(json.dumps, items)).encode())
    source = open_source("memory://long.jsonl")
    assert [source[i].turns[0][1] for i in (8, 0, 4, 8)] == ["8", "0", "4", "8"]
    assert REMOTE_BLOCK > 1 << 20


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{b,a}-*.tar", ["b-1.tar", "b-2.tar", "a-1.tar"]),
        ("?-1.tar", ["a-1.tar", "b-1.tar"]),
        ("plain", ["plain"]),
    ],
)
def test_patterns_expand_in_order(tmp_path, monkeypatch, pattern, words):
    monkeypatch.chdir(tmp_path)
    for name in ("b-2.tar", "b-1.tar", "a-1.tar"):
        (tmp_path / name).touch()
    assert files.expand(pattern) == words


def test_an_unknown_kind_of_url_is_an_error():
    with pytest.raises(InputError, match=r"foo://x: .*; download the files and give a local path"):
        files.read("foo://x")


def test_a_pattern_without_files_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\*\.tar matches no file"):
        files.expand(f"{tmp_path}/x*.tar")


def test_the_cache_computes_once_for_all_threads_and_drops_the_oldest():
    cache, computed, barrier = LRUCache(2), [], threading.Barrier(4)

    def make(key):
        computed.append(key)
        return key * 2

    def ask():
        barrier.wait()
        assert cache.get(1, lambda: make(1)) == 2

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1]
    for key in (2, 3, 2, 1):
        assert cache.get(key, lambda key=key: make(key)) == 2 * key
    assert computed == [1, 2, 3, 1]


def test_the_cache_keeps_no_failure():
    cache = LRUCache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("x", lambda: 1 // 0)
    assert cache.get("x", lambda: 7) == 7
