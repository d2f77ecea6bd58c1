"""A server of the Hugging Face hub's API on this machine: the list of a repository's files with sizes and checksums, their contents
with etags and byte ranges, large ones by way of another host as from a content network, and the faults of networks and hubs.

huggingface_hub talks to it where HF_ENDPOINT is :attr:`HubServer.url`::

    with HubServer() as hub:
        hub.repositories["owner/name"] = HubRepository({"config.json": b"{}"})
        hub.faults.append(HubFault("GET /cdn/", cut=1000))
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 2000
"""Bytes from which a file is stored as LFS has it: known by SHA-256, served by another host."""
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class HubRepository:
    """The ``files`` of a repository at one ``commit``; ``token`` is what a reader of a ``gated`` or ``private`` one must have.

    With ``granted`` False even that is not enough; ``moved`` is the name it has now, or a URL; files that are
    ``gone`` are listed, not there.
    """

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    gated: bool = False
    private: bool = False
    token: str = "hf_right"
    granted: bool = True
    moved: str = ""
    gone: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path, **settings: object) -> "HubRepository":
        """All files of ``folder``."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return cls(files, **settings)


@dataclass
class HubFault:
    """What happens to the next ``times`` requests (-1: to all) whose "METHOD path" matches ``match``.

    ``status`` answers with it, and with ``after`` as its Retry-After; ``cut`` sends so many bytes of the body and closes;
    ``damaged`` sends the body with one byte changed; ``whole`` takes no notice of a byte range, and ``shift`` sends one that begins
    so many bytes later; ``endless`` goes on behind the body, up to so many bytes; ``hold`` waits, after the bytes of ``cut``, until
    the event is set; ``answer`` is the body, whatever was asked for.
    """

    match: str
    status: int = 0
    after: str = ""
    cut: int | None = None
    damaged: bool = False
    whole: bool = False
    shift: int = 0
    endless: int = 0
    answer: bytes | None = None
    hold: threading.Event | None = None
    times: int = 1

    def takes(self, request: str) -> bool:
        """Whether this request fails; counts it."""
        if self.times == 0 or not re.search(self.match, request):
            return False
        self.times -= self.times > 0
        return True


class HubServer:
    """A context manager; ``requests`` are (method, path, host, headers) of all that came."""

    def __init__(self):
        self.repositories: dict[str, HubRepository] = {}
        self.faults: list[HubFault] = []
        self.requests: list[tuple[str, str, str, Mapping[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        """The paths of all requests for contents, by their order."""
        return [path for method, path, *_ in self.requests if method == "GET" and not path.startswith("/api/")]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            (self.command, path, self.headers["Host"], {k.lower(): v for k, v in self.headers.items()})
        )
        fault = next((fault for fault in self.hub.faults if fault.takes(f"{self.command} {path}")), HubFault(""))
        if fault.status:
            return self._send(fault.status, b"{}", {"Retry-After": fault.after} if fault.after else {})
        if fault.answer is not None:
            return self._send(200, fault.answer, {"Content-Type": "application/json"})
        if match := API.fullmatch(path):
            return self._model(path, *match.groups())
        if match := RESOLVE.fullmatch(path):
            return self._resolve(path, fault, *match.groups())
        if path.startswith("/cdn/"):
            contents = (c for repository in self.hub.repositories.values() for c in repository.files.values())
            content = next((c for c in contents if hashlib.sha256(c).hexdigest() == path.removeprefix("/cdn/")), None)
            if content is not None:
                return self._content(content, {"ETag": '"of-the-store"'}, fault)
        return self._send(404, b"{}", {})

    def _repository(self, path: str, name: str, revision: str | None, contents: bool) -> HubRepository | None:
        """The repository, or None after the refusal was sent."""
        if (repository := self.hub.repositories.get(name)) is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})  # as the hub says it to those who give no token
        elif repository.moved:
            elsewhere = "://" in repository.moved
            self._send(307, b"", {"Location": repository.moved if elsewhere else path.replace(name, repository.moved)})
        elif not self._may_read(repository, contents):
            self._send(
                403 if self._token() else 401, b"{}", {} if repository.private else {"X-Error-Code": "GatedRepo"}
            )
        elif revision not in (None, "main", "v1", repository.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_read(self, repository: HubRepository, contents: bool) -> bool:
        closed = repository.private or (repository.gated and contents)
        return not closed or (self._token() == repository.token and repository.granted)

    def _model(self, path: str, name: str, what: str | None, revision: str | None) -> None:
        if (repository := self._repository(path, name, revision, contents=False)) is None:
            return
        if what == "tree":
            answer = [entry(file, content) for file, content in repository.files.items()]
        else:
            siblings = [sibling(file, content) for file, content in repository.files.items()]
            answer = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}
            answer |= {"private": repository.private, "gated": "manual" if repository.gated else False}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str, fault: HubFault, name: str, revision: str, file: str) -> None:
        if (repository := self._repository(path, name, revision, contents=True)) is None:
            return
        content, headers = repository.files.get(file), {"X-Repo-Commit": repository.commit}
        if content is None or file in repository.gone:
            return self._send(404, b"{}", headers | {"X-Error-Code": "EntryNotFound"})
        if len(content) < LARGE:
            return self._content(content, headers | {"ETag": f'"{git_digest(content)}"'}, fault)
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self._send(302, b"", headers | {"Location": f"http://localhost:{self.hub.port}/cdn/{digest}"})

    def _content(self, content: bytes, headers: dict[str, str], fault: HubFault) -> None:
        if fault.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) + fault.shift if match and not fault.whole else 0
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(206 if start else 200, content[start:], headers, fault)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], fault: HubFault | None = None) -> None:
        self.send_response(status)
        length = {} if fault and fault.endless else {"Content-Length": str(len(body))}
        self.close_connection = not length
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = fault.cut if fault else None
        with suppress(ConnectionError):  # of a body without end the other side has had enough
            self.wfile.write(body[:cut])
            for _ in range((fault.endless if fault else 0) >> 16):
                self.wfile.write(bytes(1 << 16))
            self.wfile.flush()
        if fault and fault.hold:
            fault.hold.wait(20)
        if cut is not None:
            self.close_connection = True


def entry(path: str, content: bytes) -> dict:
    """A file as the tree of a repository has it."""
    known = sibling(path, content)
    lfs = {"lfs": {"oid": known["lfs"]["sha256"], **known["lfs"]}} if "lfs" in known else {}
    return {"type": "file", "path": path, "size": known["size"], "oid": known["blobId"], **lfs}


def sibling(name: str, content: bytes) -> dict:
    """A file as the hub lists it."""
    entry = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def git_digest(content: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
