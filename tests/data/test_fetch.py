"""Laws of fetching pictures: every fetch has a bound, a dead host costs seconds once, and errors keep secrets."""

import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from data_parts import CONFIG, SIZES, tiny_vocab, tiny_vq
from web_server import PictureServer, png

from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.sources import fetch as fetch_room
from lumina_jax.data.sources import files, open_source
from lumina_jax.data.sources.fetch import FetchLimits, fetch, fetching_within
from lumina_jax.data.sources.hosts import HOSTS, HostMemory
from lumina_jax.data.sources.urls import parse_url, shown
from lumina_jax.errors import InputError, StorageError

LIMITS = FetchLimits(seconds=1.5, max_bytes=1 << 20, pause=0.05)
GOOD = ("fast", "slow", "redirect", "busy", "flaky", "unsized", "zipped")
BAD = {
    "silent": "sent nothing for 1 s, after 0 bytes",
    "endless": "more than 1 MB; allow more with data.fetch_mb",
    "huge": "more than 1 MB",
    "drip": r"\d+ bytes came in 1.5 s, and not all",
    "cut": r"ended early, after \d+ bytes \(attempt 4\)",
    "chunkcut": "ended early, after 30 bytes",
    "zipcut": "its gzip stream is cut",
    "bomb": "more than 1 MB",
    "closing": "closed the connection after 0 bytes",
    "loop": "redirected more than 10 times",
    "file": "redirected: file:///etc/passwd is no URL of a web server",
    "missing": "not found",
    "gone": "not found",
    "forbidden": "answers 403 Forbidden",
    "closed": "answers 503 Service Unavailable and asks to wait 3600 s",
    "garbage": "does not answer as a web server",
}
REQUESTS = {"loop": fetch_room.REDIRECTS + 1, "cut": 4, "chunkcut": 4, "closing": 8}
"""Of those that are asked more than once. The HTTP client itself repeats a request that got no answer at all."""
URLS = int(os.environ.get("FETCH_URLS", "54"))
"""Records of the test of a whole run: FETCH_URLS=1000 for a full one."""


@pytest.fixture
def server():
    HOSTS.clear()
    with PictureServer() as server, fetching_within(LIMITS):
        yield server


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("behaviour", GOOD)
def test_a_picture_comes_whole(server, behaviour):
    assert fetch(f"{server.address}/{behaviour}/7") == png(7)


@pytest.mark.parametrize("behaviour", BAD)
def test_every_fetch_ends_within_its_bounds(server, behaviour):
    begin = time.monotonic()
    with pytest.raises(OSError if behaviour != "file" else InputError, match=BAD[behaviour]) as caught:
        fetch(f"{server.address}/{behaviour}/7")
    assert time.monotonic() - begin < LIMITS.seconds + 1.5
    assert caught.value.cause and "127.0.0.1" not in caught.value.cause
    assert server.requests[f"/{behaviour}/7"] == REQUESTS.get(behaviour, 1)


def test_a_page_that_comes_instead_of_a_picture_is_no_picture(server, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"image": f"{server.address}/html/1?token=12", "caption": "a"}))
    with pytest.raises(InputError, match=r"/html/1\?token=\*\*\*"):
        open_source(str(tmp_path / "c.jsonl"))[0]


def test_a_server_of_the_next_protocol_is_reached():
    HOSTS.clear()
    try:
        with PictureServer(host="::1") as server:
            assert fetch(f"{server.address}/fast/3#part") == png(3)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


@pytest.mark.parametrize(
    ("url", "kind", "reason"),
    [
        ("http://", InputError, "is no URL"),
        ("http:///x.png", InputError, "is no URL"),
        ("http://h:99999999/x", InputError, "is no URL"),
        ("http://[::1/x", InputError, "is no URL"),
        ("http://\ud800/x", InputError, "no URL"),
        (f"http://{'a' * 70}.example/x", InputError, "no URL|no address"),
        ("http://nothing.invalid/x.png", StorageError, "the name nothing.invalid has no address"),
        (
            "http://user:secret@127.0.0.1:{port}/x.png?X-Amz-Signature=abc",
            StorageError,
            r"no connection to 127.0.0.1:\d+: ",
        ),
        ("https://{address}/fast/1", StorageError, "no safe connection to"),
    ],
)
def test_what_cannot_be_reached_is_an_error_without_secrets(server, url, kind, reason):
    text = url.replace("{port}", str(unused_port())).replace("{address}", server.address.partition("//")[2])
    with pytest.raises((kind, StorageError), match=reason) as caught:
        fetch(text)
    assert not {"secret", "user", "abc"} & set(caught.value.args[0].replace("@", " ").replace("=", " ").split())
    assert isinstance(caught.value, kind) or "no address" in reason


def test_odd_urls_are_sent_as_a_browser_does(server):
    for path in ("fast/1?a=b c", "fast/1?q=é", "fast/1?s=%2Fx%3D", "fast/1?a=100%", "fast/1?x=[1]&y={2}"):
        assert fetch(f" {server.address}/{path}\n") == png(1)
    assert {"/fast/1?a=b%20c", "/fast/1?s=%2Fx%3D", "/fast/1?a=100%25"} <= {
        path.replace("+", "%20") for path in server.requests
    }
    assert files.join("http://h/d", "50% #1?.png") == "http://h/d/50%25 %231%3F.png".replace("%25 ", "%25 ")
    assert files.folder_of("https://h/d/c.jsonl?sig=a/b") == "https://h/d"


def test_secrets_are_not_shown():
    assert shown("https://me:pw@h/a.png?X-Amz-Signature=12&w=3&sig=4#x") == (
        "https://***@h/a.png?X-Amz-Signature=***&w=3&sig=***#x"
    )
    assert shown("a/b@c?token=1.png") == "a/b@c?token=1.png"
    assert str(parse_url("http://h/%7Ea?b=%2F")) == "http://h/%7Ea?b=%2F"


def test_the_time_of_a_wait_that_the_server_asks_for_is_read():
    assert fetch_room._seconds("120") == 120
    assert (
        3500 < fetch_room._seconds(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))) <= 3600
    )
    assert fetch_room._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert fetch_room._seconds("soon") is None and fetch_room._seconds("") is None


def test_a_dead_host_costs_seconds_once():
    HOSTS.clear()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.png"

        def reason(_: int) -> str:
            with fetching_within(FetchLimits(seconds=0.6)), pytest.raises(StorageError) as caught:
                fetch(url)
            return str(caught.value)

        begin = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(reason, range(200)))
        assert time.monotonic() - begin < 5
    skipped = [text for text in reasons if "skipped, because 127.0.0.1:" in text and "failed" in text]
    assert 180 < len(skipped) < 200


def test_a_host_is_asked_again_and_its_answer_makes_it_good():
    now = [0.0]
    memory = HostMemory(failures=2, pause=10, limit=3, clock=lambda: now[0])
    for _ in range(2):
        assert not memory.reason_to_skip("h")
        memory.failed("h", "refused", connected=False)
    assert "h failed 2 times in a row, at last so: refused" in memory.reason_to_skip("h")
    now[0] = 10.0
    assert not memory.reason_to_skip("h") and memory.reason_to_skip("h")  # one request asks for all
    memory.answered("h")
    assert not memory.reason_to_skip("h")
    for _ in range(5):
        memory.failed("h", "silent", connected=True)  # of a host that has just answered
    assert not memory.reason_to_skip("h")
    now[0] = 30.0
    for _ in range(2):
        memory.failed("h", "silent", connected=True)
    assert memory.reason_to_skip("h")
    for number in range(5):
        memory.failed(f"h{number}", "refused", connected=False)
    assert len(memory) == 3 and not memory.reason_to_skip("h")


def test_a_good_host_with_silent_pictures_is_not_skipped(server):
    with ThreadPoolExecutor(8) as pool:

        def good(number: int) -> bool:
            with fetching_within(FetchLimits(seconds=0.6)):
                if number % 2:
                    return fetch(f"{server.address}/fast/{number}") == png(number)
                with pytest.raises(StorageError, match="sent nothing"):
                    fetch(f"{server.address}/silent/{number}")
                return True

        assert fetch(f"{server.address}/fast/0") == png(0)
        assert all(pool.map(good, range(40)))


def test_a_store_that_hangs_has_the_same_bounds(monkeypatch):
    HOSTS.clear()
    release = threading.Event()

    class HangingStore:
        def cat_file(self, path, start, end):
            release.wait(20)

        def size(self, path):
            raise type("HttpError", (Exception,), {"code": 403})("no access")

    monkeypatch.setattr(files.fsspec, "filesystem", lambda protocol: HangingStore())
    begin = time.monotonic()
    with fetching_within(FetchLimits(seconds=0.3)), pytest.raises(StorageError, match="no answer within 0 s"):
        files.read_picture("gs://bucket/a.png")
    assert time.monotonic() - begin < 2
    with pytest.raises(StorageError, match=r"gs://bucket/a\.png: HttpError: no access"):
        files.size("gs://bucket/a.png")
    release.set()


def test_a_picture_in_a_store_has_a_bound_of_bytes():
    files.fsspec.filesystem("memory").pipe_file("/big/a.png", bytes(2000))
    with fetching_within(FetchLimits(max_bytes=1999)), pytest.raises(StorageError, match="more than"):
        files.read_picture("memory://big/a.png")
    with fetching_within(FetchLimits(max_bytes=2000)):
        assert files.read_picture("memory://big/a.png") == bytes(2000)


def test_a_pipe_or_device_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (str(tmp_path / "pipe.png"), "/dev/zero"):
        with pytest.raises(StorageError, match="no regular file"):
            files.read_picture(path)


KINDS = ("fast", "slow", "silent", "endless", "cut", "redirect", "missing", "busy", "flaky")


@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_a_run_over_every_kind_of_server_ends_with_each_record_in_the_right_list(tmp_path, order):
    HOSTS.clear()
    whole = URLS >= 1000
    cfg = CONFIG if whole else replace(CONFIG, fetch_seconds=8.0, fetch_mb=1)
    kinds = [KINDS[i % len(KINDS)] for i in range(URLS)]
    kinds = sorted(kinds, key=KINDS.index) if order == "sorted" else kinds
    with PictureServer(seconds=3.0 if whole else 0.3) as server:
        lines = (
            {"image": f"{server.address}/{kind}/{number}", "caption": f"noise {number}"}
            for number, kind in enumerate(kinds)
        )
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        begin = time.monotonic()
        pretokenize(
            open_source(str(tmp_path / "c.jsonl")),
            tiny_vq(),
            tiny_vocab(),
            tmp_path / "out",
            cfg,
            0,
            sizes=SIZES,
            progress=False,
        )
        seconds = time.monotonic() - begin
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {line["index"] for line in rejects} == {i for i, kind in enumerate(kinds) if kind not in GOOD}
    words = {
        "silent": "sent nothing",
        "endless": "more than|not all",
        "cut": "ended early|not all",
        "missing": "not found",
    }
    for line in rejects:
        assert any(word in line["reason"] for word in words[kinds[line["index"]]].split("|")), line
    print(f"{URLS} URLs, {order}: {seconds:.1f} s")
    assert seconds < 60
