"""Files of a hub on this machine: each once, resumed, verified, said beforehand; every refusal is one line with its cure."""

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import HubFault, HubRepository, git_digest, sibling
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from lumina_jax.errors import InputError, MissingFileError, StorageError
from lumina_jax.faults import EXIT_RESTART, exit_code
from lumina_jax.hub import client, download
from lumina_jax.hub import fetch as fetching
from lumina_jax.hub.address import HubAddress, is_hub, parse
from lumina_jax.hub.cache import PART, cached_repository
from lumina_jax.hub.client import PassingHubError
from lumina_jax.hub.fetch import fetch

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "owner/name"
ADDRESS = HubAddress(NAME)
LARGE = random.Random(0).randbytes(30_000)
FILES = {"config.json": b'{"a": 1}', "weights/model.bin": LARGE, "copy.bin": LARGE, "ignored.md": b"words"}
NEEDED = ["config.json", "weights/model.bin", "copy.bin"]


def needed(names):
    """A choice of NEEDED."""
    if absent := [name for name in NEEDED if name not in names]:
        raise MissingFileError(f"lacks {absent}")
    return NEEDED


@pytest.fixture
def repository(hub) -> HubRepository:
    hub.repositories[NAME] = HubRepository(dict(FILES))
    return hub.repositories[NAME]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(kind: type[Exception], address: HubAddress = ADDRESS) -> str:
    """The one line of a fetch that ends with an error of ``kind``."""
    with pytest.raises(kind) as caught:
        fetch(address, needed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://owner/name", HubAddress("owner/name")),
        ("hf://models/owner/name/", HubAddress("owner/name")),
        ("HF://Alpha-VLLM/Lumina-mGPT-7B-768@v1", HubAddress("Alpha-VLLM/Lumina-mGPT-7B-768", "v1")),
        ("hf://o/n.x@refs%2Fpr%2F1/models/7b", HubAddress("o/n.x", "refs/pr/1", "models/7b")),
    ],
)
def test_an_address_is_read_and_written(text, address):
    assert is_hub(text) and parse(text) == address and parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://owner", "hf://datasets/o/n", "hf://o/n/../x", "hf://o/n@", "hf://o/n@..%2Fx", "hf://o/n m"),
        *("hf://o/n@\0", "hf://o/n/\x1b[31m", f"hf://o/n@{'x' * 300}", f"hf://o/n/{'x' * 300}"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form(text):
    with pytest.raises(InputError, match=r"give hf://OWNER/NAME\[@REVISION\]"):
        parse(text)


def test_the_needed_files_come_once_and_the_hub_s_own_client_finds_them(hub, repository, capsys):
    folder = fetch(ADDRESS, needed)
    assert contents(folder) == {name: FILES[name] for name in NEEDED} and folder.name == repository.commit
    assert sum(path.startswith("/cdn/") for path in hub.fetched()) == 1  # two files of one content
    said = capsys.readouterr().err.splitlines()
    assert (
        "hf://owner/name: commit c0ffee000000, 30.0 kB of 60.0 kB to fetch in 2 of 3 files;" in said[0]
        and "free in" in said[0]
    )
    assert "of 0 MB" in said[1] and "left" in said[1]
    assert try_to_load_from_cache(NAME, "weights/model.bin") == str(folder / "weights/model.bin")
    count = len(hub.requests)
    assert snapshot_download(NAME, local_files_only=True) == str(folder)
    assert fetch(ADDRESS, needed) == folder and [path for _, path, *_ in hub.requests[count:]] == [
        f"/api/models/{NAME}/revision/main"
    ]
    assert "all 3 files are in" in capsys.readouterr().err
    count = len(hub.requests)
    assert fetch(HubAddress(NAME, repository.commit), needed) == folder and len(hub.requests) == count


def test_another_commit_brings_only_what_changed(hub, repository):
    old = fetch(ADDRESS, needed)
    repository.commit, repository.files["config.json"] = "beef" * 10, b"{}"
    new, count = fetch(ADDRESS, needed), len([path for path in hub.fetched() if path.startswith("/cdn/")])
    assert new != old and (new / "config.json").read_bytes() == b"{}" and count == 1
    assert (old / "config.json").read_bytes() == FILES["config.json"]


def test_what_the_hub_s_own_client_fetched_is_not_fetched_again(hub, repository):
    snapshot_download(NAME)
    before = len(hub.fetched())
    assert contents(fetch(ADDRESS, needed)) == FILES and len(hub.fetched()) == before


def test_interrupted_at_ten_random_bytes_it_goes_on_behind_each(hub, repository):
    """Each start is a process of its own in effect: the connection ends for good, and only the bytes on disk are left."""
    cuts = sorted(random.Random(1).sample(range(1, len(LARGE)), 10))
    part = cached_repository(ADDRESS).folder / "blobs"
    done = 0
    for cut in cuts:
        hub.faults[:] = [
            HubFault("GET /cdn/", cut=cut - done),
            HubFault("GET /owner/name/resolve", status=503, times=-1),
        ]
        hub.faults[1].match = "GET /cdn/"
        assert "run this again, which goes on from here" in refused(PassingHubError)
        [left] = part.glob(f"*{PART}")
        done = left.stat().st_size
        assert left.read_bytes() == LARGE[:done] and done == cut
    hub.faults.clear()
    before = len(hub.requests)
    assert contents(fetch(ADDRESS, needed)) == {name: FILES[name] for name in NEEDED}
    ranges = [headers.get("range") for _, path, _, headers in hub.requests[before:] if path.startswith("/cdn/")]
    assert ranges == [f"bytes={done}-"] and not [*part.glob(f"*{PART}")]


def test_a_connection_that_ends_is_taken_up_again_in_one_call(hub, repository, capsys):
    hub.faults += [
        HubFault("GET /cdn/", cut=10_000),
        HubFault("GET /cdn/", status=500),
        HubFault("GET /cdn/", cut=5_000),
    ]
    assert contents(fetch(ADDRESS, needed))["copy.bin"] == LARGE
    said = capsys.readouterr().err
    assert "goes on at byte 10,000 of 30,000" in said and "goes on at byte 15,000" in said and "HTTP 500" in said


def test_a_server_without_ranges_sends_all_again(hub, repository):
    hub.faults += [HubFault("GET /cdn/", cut=10_000), HubFault("GET /cdn/", whole=True)]
    assert contents(fetch(ADDRESS, needed))["copy.bin"] == LARGE


def test_other_bytes_than_those_asked_for_are_not_put_behind_what_is_there(hub, repository, capsys):
    hub.faults += [HubFault("GET /cdn/", cut=10_000), HubFault("GET /cdn/", shift=7)]
    assert contents(fetch(ADDRESS, needed))["copy.bin"] == LARGE
    assert "the server sends other bytes than those behind byte 10,000" in capsys.readouterr().err


def test_a_body_without_end_does_not_fill_the_disk(hub, repository, monkeypatch):
    hub.faults.append(HubFault("GET /cdn/", endless=1 << 28))
    sizes, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **_: (sizes.append(path.stat().st_size), unlink(path)))
    assert "came with another content than the hub says" in refused(StorageError)
    assert sizes and max(sizes) < 1 << 20


@pytest.mark.parametrize("file", ["/cdn/", "config.json"])
def test_a_wrong_checksum_is_refused_and_nothing_of_it_stays(hub, repository, file):
    hub.faults.append(HubFault(f"GET .*{file}", damaged=True))
    line = refused(StorageError)
    assert "came with another content than the hub says" in line and "it was removed: run this again" in line
    folder = cached_repository(ADDRESS).folder
    digest = git_digest(FILES[file]) if file in FILES else sibling("", LARGE)["lfs"]["sha256"]
    assert not [*folder.glob(f"blobs/{digest}*")] and not [*folder.glob("snapshots/*/*")]
    assert contents(fetch(ADDRESS, needed))["copy.bin"] == LARGE


def test_what_is_missing_is_named(hub, repository):
    repository.gone.add("config.json")
    assert "lists a file that it does not have" in refused(MissingFileError)
    del repository.files["copy.bin"]
    assert "lacks ['copy.bin']" in refused(MissingFileError)
    assert "no revision nosuch;" in refused(MissingFileError, HubAddress(NAME, "nosuch"))
    line = refused(MissingFileError, HubAddress("owner/nosuch"))
    assert "knows no such repository, or it is private" in line and "HF_TOKEN=" in line


def test_a_gated_repository_is_explained(hub, repository, monkeypatch):
    repository.gated = True
    line = refused(StorageError)
    assert f"accept the licence at {hub.url}/{NAME}, and give a token of {hub.url}/settings/tokens as HF_TOKEN=" in line
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "has not been granted access yet" in refused(StorageError)
    monkeypatch.setenv("HF_TOKEN", repository.token)
    assert contents(fetch(ADDRESS, needed))["copy.bin"] == LARGE
    tokens = {path[:5]: headers.get("authorization") for _, path, _, headers in hub.requests}
    assert tokens["/cdn/"] is None and tokens["/owne"] == f"Bearer {repository.token}"


def test_a_repository_that_moved_is_followed_and_said(hub, repository, capsys):
    hub.repositories["old/name"] = HubRepository({}, moved=NAME)
    folder = fetch(HubAddress("old/name"), needed)
    assert contents(folder)["copy.bin"] == LARGE
    assert "hf://old/name: the repository is now called owner/name" in capsys.readouterr().err


def test_a_file_that_would_lie_elsewhere_is_refused(hub, repository):
    repository.files["../outside"] = b"x"
    assert "its file '../outside' would lie outside of its folder; nothing is fetched" in refused(StorageError)
    assert hub.fetched() == []


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\x1b[31mb"])
def test_a_file_whose_name_moves_the_cursor_is_refused(hub, repository, name):
    repository.files[name] = b"x"
    assert f"its file {name!r} has letters that no file should have; nothing is fetched" in refused(StorageError)
    assert hub.fetched() == []


COMMIT = "a" * 40


@pytest.mark.parametrize(
    "answer",
    [
        "null",
        "[]",
        "{}",
        "[" * 10**5,
        '{"id": "o/n", "sha": 5}',
        '{"id": "o/n", "siblings": 5}',
        f'{{"id": "o/n", "sha": "{COMMIT}", "siblings": [1]}}',
        *(
            f'{{"id": "o/n", "sha": "{COMMIT}", "siblings": [{json.dumps(entry)}]}}'
            for entry in (
                {},
                {"rfilename": 5, "size": 1},
                {"rfilename": "a", "size": "1", "blobId": COMMIT},
                {"rfilename": "a", "size": -1, "blobId": COMMIT},
                {"rfilename": "a", "size": 1, "blobId": 5},
                {"rfilename": "a", "size": 1, "blobId": "../x"},
                {"rfilename": "a", "size": 1, "lfs": [1]},
                {"rfilename": "a", "size": 1, "lfs": {"sha256": "../../x", "size": 1, "pointerSize": 1}},
                {"rfilename": "a", "size": 1, "lfs": {"size": 1}},
            )
        ),
    ],
    ids=lambda answer: answer[:90],
)
def test_json_that_no_hub_says_is_refused_in_a_line(hub, repository, answer):
    hub.faults.append(HubFault("GET /api", answer=answer.encode()))
    assert "HF_ENDPOINT" in refused(StorageError) and hub.fetched() == []


def test_no_message_tells_a_password_or_what_a_content_network_is_asked(hub, repository, monkeypatch, capsys):
    secret = hub.url.replace("://", "://user:pass-word@")
    monkeypatch.setattr(constants, "ENDPOINT", secret)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", secret + "/{repo_id}/resolve/{revision}/{filename}?Signature=s1gned"
    )
    lines = [refused(MissingFileError, HubAddress("owner/nosuch"))]
    hub.faults.append(HubFault("GET /api", answer=b"<html>"))
    lines.append(refused(StorageError))
    hub.faults.append(HubFault("GET /owner", status=418, times=-1))
    lines.append(refused(StorageError))
    said = "\n".join([*lines, capsys.readouterr().err])
    assert "pass-word" not in said and "s1gned" not in said and hub.url in said


def test_a_token_with_letters_that_no_header_takes_is_named_and_not_shown(hub, repository, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_\N{LATIN SMALL LETTER A WITH DIAERESIS}bc")
    line = refused(InputError)
    assert "the token has letters that no token has" in line and "bc" not in line


def test_a_token_is_not_sent_to_another_host_that_the_list_of_files_is_moved_to(hub, repository, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.repositories["old/name"] = HubRepository({}, moved=f"http://localhost:{hub.port}/api/models/{NAME}")
    assert set(client.repository_of(HubAddress("old/name")).files) == set(FILES)
    hosts = {headers["host"]: headers.get("authorization") for _, path, _, headers in hub.requests if "/api/" in path}
    assert hosts == {f"127.0.0.1:{hub.port}": "Bearer hf_right", f"localhost:{hub.port}": None}


def test_a_disk_without_room_is_said_before_the_first_byte(hub, repository, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
    line = refused(StorageError)
    assert "30.0 kB are to be fetched, but" in line and "20.0 kB free; free space, or set HF_HOME" in line
    assert hub.fetched() == []


def test_a_disk_that_fills_up_meanwhile_is_no_matter_of_the_network(hub, repository, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_digest_of", full)
    assert "No space left on device" in refused(StorageError)


def test_offline_what_is_in_the_cache_is_taken_and_all_else_refused(hub, repository, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not in the hub's cache" in (line := refused(MissingFileError)) and "HF_HUB_OFFLINE is set" in line
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = fetch(ADDRESS, needed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    capsys.readouterr()
    assert fetch(ADDRESS, needed) == folder and len(hub.requests) == count
    assert "commit c0ffee000000 from the cache" in (said := capsys.readouterr().err) and said.count("\n") == 1
    (folder / "copy.bin").unlink()
    assert "lacks ['copy.bin']" in refused(MissingFileError)


def test_without_a_network_the_cache_serves_and_its_absence_is_said(hub, repository, monkeypatch, capsys):
    folder = fetch(ADDRESS, needed)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert fetch(ADDRESS, needed) == folder and "no connection to http://127.0.0.1:9" in capsys.readouterr().err
    with pytest.raises(PassingHubError, match=r"no connection to http://127\.0\.0\.1:9 .*check the network") as caught:
        fetch(HubAddress("owner/other"), needed)
    assert exit_code(caught.value) == EXIT_RESTART
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "unknown")))
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    with pytest.raises(StorageError, match=r"http://hub\.invalid is not known here .*HF_HUB_OFFLINE=1"):
        fetch(HubAddress("owner/other"), needed)


def test_a_hub_that_is_busy_is_asked_again_and_then_named(hub, repository, capsys):
    hub.faults.append(HubFault("GET /api", status=429, times=3))
    assert fetch(ADDRESS, needed).is_dir()
    said = capsys.readouterr().err
    assert (said.count("too many requests"), said.count("the same; attempt")) == (1, 2)
    hub.faults.append(HubFault("GET /api", status=429, after="70", times=-1))
    line = refused(PassingHubError, HubAddress("owner/other"))
    assert line.endswith("HTTP 429, too many requests; wait 70 s and run this again, which goes on from here")


def test_another_server_than_a_hub_is_known(hub, repository, monkeypatch):
    monkeypatch.setattr(
        client.need_hub().HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(ValueError("<html>"))
    )
    assert "is not what a hub says (<html>); see that HF_ENDPOINT is right" in refused(StorageError)


PROGRAM = """
import sys
from lumina_jax.hub.address import parse
from lumina_jax.hub.fetch import fetch
print(fetch(parse(sys.argv[1]), lambda names: ["weights/model.bin"]))
"""


def started(hub, home: Path) -> subprocess.Popen:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, f"hf://{NAME}"], cwd=REPOSITORY, env=environment, **pipes)


def test_two_processes_fetch_one_file_once_and_a_killed_one_leaves_what_came(hub, repository, tmp_path):
    """The first is killed within the file; of the two that follow one goes on behind its bytes and the other waits for it."""
    hub.faults.append(HubFault("GET /cdn/", cut=12_345, hold=threading.Event()))
    first = started(hub, tmp_path)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in tmp_path.rglob(f"*{PART}")) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.communicate()
    hub.faults[:] = [HubFault("GET /cdn/", cut=10_000, hold=(waits := threading.Event()))]
    both = [started(hub, tmp_path) for _ in range(2)]
    while sum(path == f"/api/models/{NAME}/revision/main" for _, path, *_ in hub.requests) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    waits.set()
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    [folder] = {output.strip() for output, _ in outputs}
    assert (Path(folder) / "weights/model.bin").read_bytes() == LARGE
    ranges = [headers.get("range") for _, path, _, headers in hub.requests if path.startswith("/cdn/")]
    assert len(ranges) == 3 and ranges[0] is None and all(ranges[1:]), ranges


def test_git_s_checksum_is_git_s():
    assert git_digest(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_one_file_that_fails_ends_the_others_and_is_the_one_that_is_named(hub, repository, monkeypatch):
    """The slow file comes first; it is not waited for."""
    slow = threading.Event()
    hub.faults += [HubFault("GET /cdn/", cut=100, hold=slow), HubFault("GET .*config.json", damaged=True)]
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    with pytest.raises(StorageError, match=r"config\.json of hf://owner/name came with another content"):
        fetch(ADDRESS, lambda names: ["weights/model.bin", "config.json"])
    assert not slow.is_set() and [*cached_repository(ADDRESS).folder.glob(f"blobs/*{PART}")]
