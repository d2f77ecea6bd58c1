"""Tokens that are not as they were written are noticed: at each read, before the first step, in the background, on request."""

import errno
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lumina_jax.data import token_files, verify
from lumina_jax.data.shard_writer import write_shard, write_totals
from lumina_jax.data.shards import CHECKSUMS, LENGTHS, MANIFEST, Settings, Shards, pack
from lumina_jax.data.verify import TokenCheck, damage_of, damaged_shards
from lumina_jax.errors import InputError
from lumina_jax.faults import EXIT_RESTART, exit_code
from lumina_jax.storage import StorageFolder

SHARDS, RECORDS = 3, 8


@pytest.fixture
def folder(tmp_path) -> Path:
    settings = Settings(SHARDS * RECORDS, "source", "tokenizer", "vq", 0, (), RECORDS)
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        sizes = rng.integers(2, 40, RECORDS)
        samples = [(rng.integers(0, 1000, size, dtype=np.int32), rng.random(size) < 0.5) for size in sizes]
        write_shard(StorageFolder(tmp_path), settings, shard, samples)
    write_totals(StorageFolder(tmp_path), settings)
    return tmp_path


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << place % 8
    file.write_bytes(content)


def test_the_manifest_holds_a_checksum_of_each_shard_and_the_folder_one_of_each_record(folder):
    tokens = Shards(folder)
    files = sorted(folder.glob("*.tokens"))
    assert tokens.manifest.shard_crc32 == tuple(zlib.crc32(file.read_bytes()) for file in files)
    assert [zlib.crc32(pack(*tokens[index])) for index in range(len(tokens))] == tokens.checksums.tolist()
    assert damaged_shards(tokens) == []


def test_no_record_is_given_that_is_not_as_it_was_written(folder):
    file = folder / "00001-of-00003.tokens"
    for place in range(0, file.stat().st_size, 37):
        flip(file, place)
        tokens, refused = Shards(folder), []
        for index in range(len(tokens)):
            try:
                tokens[index]
            except InputError as error:
                refused.append(str(error))
        assert len(refused) == 1 and refused[0].startswith(f"{file} is damaged: record ")
        (reason,) = damaged_shards(tokens)
        assert reason.startswith(f"{file} is damaged: its bytes are not those that were written")
        flip(file, place)


@pytest.mark.parametrize("name", [LENGTHS, CHECKSUMS])
def test_the_numbers_of_all_records_are_compared_when_a_folder_is_opened(folder, name):
    flip(folder / name, 200)
    with pytest.raises(InputError, match=f"{name} is damaged; copy it again"):
        Shards(folder)


def test_a_host_with_other_bytes_than_the_manifest_says_ends_before_the_first_step(folder):
    flip(folder / "00002-of-00003.tokens", 50)
    with pytest.raises(InputError, match=r"00002-of-00003.tokens is damaged"):
        TokenCheck([Shards(folder)], 1, host=0, hosts=2).before()
    TokenCheck([Shards(folder)], 0, host=0, hosts=2).before()  # switched off


def test_what_is_not_read_before_the_first_step_is_read_in_the_background(folder, monkeypatch):
    monkeypatch.setattr("lumina_jax.data.verify.PAUSE", 0)
    check = TokenCheck([Shards(folder)], 1, host=0, hosts=1)
    check._limit = 1  # less than a shard
    check.before()
    flip(folder / "00002-of-00003.tokens", 50)

    def forever():
        while True:
            time.sleep(0.01)
            yield 0

    with pytest.raises(InputError, match=r"00002-of-00003.tokens is damaged"):
        for _ in check.during(forever()):
            pass


@pytest.fixture
def verified(monkeypatch) -> list[int]:
    """The numbers of the shards that were read to their end, in order."""
    done = []

    def noted(shard, advance):
        reason = damage_of(shard, advance)
        done.append(shard[1])
        return reason

    monkeypatch.setattr(verify, "damage_of", noted)
    monkeypatch.setattr(verify, "PAUSE", 0)
    return done


def until(done) -> Iterator[int]:
    """Items for as long as there is something to wait for."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)
        yield 0


def test_each_host_reads_its_share_of_the_shards(folder, verified):
    for host in range(2):
        check = TokenCheck([Shards(folder)], 1, host=host, hosts=2)
        check._limit = 1
        for _ in check.during(until(lambda: not check._left)):  # noqa: B023, used at once
            pass
    assert sorted(verified) == list(range(SHARDS))


def test_a_run_that_goes_back_verifies_the_rest(folder, verified, monkeypatch):
    """The reading of the second shard is broken off, and done again."""
    inside, going_on, damage = threading.Event(), threading.Event(), verify.damage_of

    def slow(shard, advance):
        if shard[1] == 1:
            inside.set()
            going_on.wait(60)
        return damage(shard, advance)

    monkeypatch.setattr(verify, "damage_of", slow)
    check = TokenCheck([Shards(folder)], 1, host=0, hosts=1)
    check._limit = 1
    steps = check.during(iter(range(9)))
    next(steps)
    assert inside.wait(60)
    steps.close()
    going_on.set()
    for _ in check.during(until(lambda: not check._left)):
        pass
    assert verified == [0, 1, 2]


@pytest.mark.parametrize("failures", [2, 99])
def test_a_disk_that_fails_is_read_again_and_its_file_is_named_when_it_keeps_failing(folder, monkeypatch, failures):
    monkeypatch.setattr("lumina_jax.faults.FIRST_PAUSE", 0)
    shards, left, lock = Shards(folder), [failures], threading.Lock()

    def failing(read):
        def call(*arguments):
            with lock:
                left[0] -= 1
            if left[0] >= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(*arguments)

        return call

    monkeypatch.setattr("lumina_jax.data.token_files.os.pread", failing(os.pread))
    with pytest.raises(OSError, match=r"Input/output error: '.*00000-of-00003.tokens'"):
        shards[0]
    monkeypatch.setattr(token_files, "_block", failing(token_files._block))
    check = TokenCheck([shards], 1, host=0, hosts=1)
    if failures == 2:
        return check.before()
    with pytest.raises(OSError, match=r"Input/output error: '.*-of-00003.tokens'") as raised:
        check.before()
    assert exit_code(raised.value) == EXIT_RESTART


def test_a_folder_of_an_older_version_is_read_without_checksums(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["shard_crc32"], manifest["index_crc32"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / CHECKSUMS).unlink()
    tokens = Shards(folder)
    assert tokens.checksums is None and len(tokens[3][0]) and damaged_shards(tokens) == []
    TokenCheck([tokens], 1, 0, 1).before()
