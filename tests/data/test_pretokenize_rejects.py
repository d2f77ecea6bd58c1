"""One record never ends a run: whatever it raises is a reject with a cause; what concerns every record does, with one line."""

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_parts import CONFIG, SIZES, NoiseSource, noise, tiny_vocab, tiny_vq

from lumina_jax import layout
from lumina_jax.data import shard_maker, shards
from lumina_jax.data.export import export
from lumina_jax.data.prepare import prepare
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Settings, Shards, sum_causes
from lumina_jax.data.sources import Record, open_source
from lumina_jax.data.sources.record import BUGS_AT_START, Reject, RejectStreak, read_record
from lumina_jax.errors import ExistingFileError, InputError, MissingPackageError, SourceError, StorageError
from lumina_jax.storage import StorageFolder

VOCAB, VQ = tiny_vocab(), tiny_vq()
PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def wrapped(error: Exception) -> StorageError:
    try:
        raise StorageError("picture.png: no") from error
    except StorageError as outer:
        return outer


ODD = (
    MissingPackageError("s3://a.png: install s3fs"),
    RecursionError("maximum recursion depth exceeded"),
    KeyError("caption"),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    zlib.error("Error -3 while decompressing data"),
    struct.error("unpack requires a buffer of 4 bytes"),
    OverflowError("Python int too large to convert to C long"),
    TypeError("unhashable type: 'dict'"),
    AssertionError(),
    StopIteration(),
    EOFError(),
    os_error(errno.EIO),
    os_error(errno.ENAMETOOLONG),
    PanicException("index out of bounds"),
)


class Raising(NoiseSource):
    """Noise whose records of these numbers raise these errors."""

    def __init__(self, records: int, errors: dict[int, BaseException]):
        super().__init__(records)
        self.errors = errors

    def __getitem__(self, index: int) -> Record:
        if index in self.errors:
            raise self.errors[index]
        return super().__getitem__(index)


def run(out, source, **changes):
    arguments = dict(cfg=CONFIG, seed=5, shard_records=16, batch=4, sizes=SIZES, progress=False) | changes
    return pretokenize(source, VQ, VOCAB, out, **arguments)


def rejects(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().split("\n")[:-1]]


def test_whatever_a_record_raises_is_a_reject_and_all_others_are_kept(tmp_path):
    source = Raising(48, {3 * place + 1: error for place, error in enumerate(ODD)})
    manifest = run(tmp_path / "tokens", source)
    assert (manifest.kept, manifest.rejected) == (48 - len(ODD), len(ODD))
    listed = rejects(tmp_path / "tokens")
    assert [line["index"] for line in listed] == list(source.errors)
    assert all(line["reason"] and line["cause"] for line in listed)
    _, good, bad = export(source, tmp_path / "exported", progress=False)
    assert (good, bad) == (manifest.kept, manifest.rejected)
    assert [line["index"] for line in rejects(tmp_path / "exported")] == list(source.errors)


@pytest.mark.parametrize("error", [SourceError("the list is gone"), KeyboardInterrupt(), SystemExit(3)])
def test_what_concerns_the_whole_source_passes(error):
    def read():
        raise error

    with pytest.raises(type(error)):
        read_record(read)


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.EMFILE, "ulimit"), (errno.ENFILE, "ulimit"), (errno.ENOSPC, "room"), (errno.EDQUOT, "room")],
)
def test_an_exhausted_machine_ends_the_run_with_its_cure(number, cure, wrap):
    def read():
        raise wrap(os_error(number))

    with pytest.raises(StorageError, match=cure):
        read_record(read)


def test_the_reject_of_a_likely_bug_says_where_it_was_raised():
    reject = read_record(layout.best_crop, None, [(8, 8)])
    assert reject.reason.startswith("TypeError: ") and "(lumina_jax/layout.py:" in reject.reason
    assert reject.cause.startswith("TypeError in lumina_jax/layout.py:") and isinstance(reject.bug, TypeError)
    expected = read_record(int, "no number")
    assert expected.bug is None and "lumina_jax" not in expected.reason


def test_a_reason_is_never_longer_than_a_page():
    assert len(read_record(int, "x" * 10**6).reason) < 2100


BAD, OTHER = Reject("a.png: gone", "file not found"), Reject("b.png: damaged", "damaged")
BUG = Reject("KeyError: 'x' (a.py:1)", "KeyError in a.py:1", KeyError("x"))


def test_a_row_of_rejects_of_one_cause_ends_the_run_with_an_example():
    streak = RejectStreak(3)
    for index, reject in enumerate([BAD, BAD, None, BAD, BAD, OTHER, BAD, BAD]):
        streak.add(index, reject)
    with pytest.raises(
        SourceError, match=r"3 records in a row, 6 to 8, .* file not found: a.png: gone; .*=0 \(no limit\)"
    ):
        streak.add(8, BAD)


def test_without_a_limit_no_row_of_rejects_ends_the_run():
    streak = RejectStreak(0)
    for index in range(5000):
        streak.add(index, BUG)


def test_a_row_of_bugs_is_raised_at_the_limit_or_when_nothing_else_was_seen():
    streak = RejectStreak(1000)
    for index in range(BUGS_AT_START - 1):
        streak.add(index, BUG)
    with pytest.raises(KeyError):
        streak.add(BUGS_AT_START, BUG)
    streak = RejectStreak(100)
    streak.add(0, None)
    for index in range(1, 100):
        streak.add(index, BUG)
    with pytest.raises(KeyError):
        streak.add(100, BUG)


@pytest.mark.parametrize("too_long", [False, True], ids=["while it is read", "while it is tokenized"])
def test_the_limit_keeps_finished_shards_and_a_mended_source_goes_on(tmp_path, too_long):
    source, limit = NoiseSource(64), replace(CONFIG, max_consecutive_rejects=12)
    run(tmp_path / "whole", source)
    if too_long:
        gone = NoiseSource(64)
        talk = Record([("why", "because " * 200)], [])
        gone.__class__ = type(
            "Talkative", (NoiseSource,), {"__getitem__": lambda self, i: talk if i >= 30 else source[i]}
        )
        changes = dict(max_tokens=400)
    else:
        gone, changes = NoiseSource(64, bad=tuple(range(30, 64))), {}
    with pytest.raises(SourceError, match="12 records in a row, 30 to 41"):
        run(tmp_path / "out", gone, cfg=limit, **changes)
    assert (tmp_path / "out" / "00000-of-00004.tokens").exists()
    assert not (tmp_path / "out" / "00002-of-00004.tokens").exists()
    if not too_long:
        run(tmp_path / "out", source)
        whole, out = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out")
        )
        assert set(whole) == set(out)


@pytest.mark.parametrize("text", ["half \ud83d", 5, None, b"bytes"])
def test_one_bad_text_fails_its_own_record_alone(tmp_path, text):
    class OneText(NoiseSource):
        def __getitem__(self, index):
            return Record([(text, "yes")], []) if index == 4 else super().__getitem__(index)

    manifest = run(tmp_path / "out", OneText(32))
    run(tmp_path / "good", NoiseSource(32))
    assert [line["index"] for line in rejects(tmp_path / "out")] == [4] and manifest.kept == 31
    good, out = Shards(tmp_path / "good"), Shards(tmp_path / "out")
    for place in range(31):
        np.testing.assert_array_equal(out[place][0], good[place + (place >= 4)][0])


@pytest.mark.parametrize("form", [(8, 8, 3), (16, 16), (16, 16, 4)])
def test_one_picture_that_the_encoder_cannot_take_fails_its_own_record_alone(tmp_path, monkeypatch, form):
    whiten = shard_maker.pixels.whiten
    odd = noise((20, 20), 99)
    monkeypatch.setattr(
        shard_maker.pixels, "random_crop", lambda image, size, rng: odd if image is odd else image.resize(size)
    )
    monkeypatch.setattr(
        shard_maker.pixels, "whiten", lambda image: np.zeros(form, np.uint8) if image is odd else whiten(image)
    )

    class OnePicture(NoiseSource):
        def __getitem__(self, index):
            return Record([], [odd], caption="odd") if index == 6 else super().__getitem__(index)

    manifest = run(tmp_path, OnePicture(32))
    (reject,) = rejects(tmp_path)
    assert reject["index"] == 6 and "became uint8" in reject["reason"] and manifest.kept == 31


def test_a_record_that_is_lost_on_the_way_is_an_error_that_names_its_shard(tmp_path, monkeypatch):
    add = shard_maker._ShardDraft.add
    monkeypatch.setattr(
        shard_maker._ShardDraft, "add", lambda self, i, record: None if i == 20 else add(self, i, record)
    )
    with pytest.raises(AssertionError, match="15 of the 16 records of shard 1"):
        run(tmp_path, NoiseSource(48))


@pytest.mark.parametrize("change", [lambda r: r["lengths"].pop(), lambda r: r["rejects"].append(r["rejects"][0])])
def test_a_shard_whose_counts_do_not_add_up_to_the_source_is_named(tmp_path, change):
    run(tmp_path, NoiseSource(48, bad=(17,)))
    report = tmp_path / "00001-of-00003.json"
    counts = json.loads(report.read_text())
    change(counts)
    report.write_text(json.dumps(counts))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"shard 1 has (15|17) records.* of the 16 .*delete 00001-of-00003"):
        run(tmp_path, NoiseSource(48, bad=(17,)))


def test_rejects_are_summed_up_by_cause_with_an_example_each(tmp_path, capsys):
    errors = {index: InputError(f"[red]/{index}.png: gone", cause="file not found") for index in range(0, 20, 2)}
    errors |= {31: InputError("x\n\x1b[2J: a caption"), 33: KeyError("half \udcff")}
    manifest = run(tmp_path, Raising(48, errors), progress=True)
    assert [(cause.cause, cause.count, cause.index) for cause in manifest.causes[:2]] == [
        ("file not found", 10, 0),
        ("a caption", 1, 31),
    ]
    lines = capsys.readouterr().err.splitlines()
    start = lines.index(f"{tmp_path}: 12 of 48 records were rejected")
    assert lines[start + 1] == "     10  file not found; such as record 0: [red]/0.png: gone"
    assert lines[start + 2] == r"      1  a caption; such as record 31: x\n\x1b[2J: a caption"
    assert r"half \udcff" in lines[start + 3] or r"half \\udcff" in lines[start + 3]


def test_of_very_many_causes_the_rest_counts_as_one():
    lines = [{"index": i, "reason": f"r{i}", "cause": f"c{i % 70}"} for i in range(700)]
    causes = sum_causes(lines)
    assert len(causes) == shards.MAX_CAUSES + 1 and sum(cause.count for cause in causes) == 700
    assert causes[-1].cause == "other causes"


def test_when_nothing_is_kept_the_run_says_so(tmp_path, capsys):
    manifest = run(tmp_path, NoiseSource(3, bad=(0, 1, 2)), progress=True)
    assert (manifest.kept, manifest.rejected) == (0, 3)
    assert "3 of 3 records were rejected; nothing was kept" in capsys.readouterr().err
    with pytest.raises(
        InputError, match="none of the 3 records could be kept, 3 of them because of: OSError: record N"
    ):
        prepare(NoiseSource(3, bad=(0, 1, 2)), tmp_path / "sets", "empty", progress=False)


def test_a_folder_of_an_older_version_is_read(tmp_path):
    run(tmp_path, NoiseSource(48, bad=(3, 17)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["causes"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert Shards(tmp_path).manifest.causes == ()
    old = [
        {"index": 3, "reason": "a.jsonl, record 3: 'x' is bad"},
        {"index": 9, "reason": "a.jsonl, record 9: 'y' is bad"},
    ]
    assert [(cause.cause, cause.count) for cause in sum_causes(old)] == [("... is bad", 2)]


@pytest.mark.parametrize("name", ["manifest.json", "rejects.jsonl", "lengths.npy", "00000-of-00002.tokens"])
def test_a_file_of_another_program_is_never_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ExistingFileError, match=name):
        run(tmp_path, NoiseSource(32))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_files_in_the_folder_stay(tmp_path):
    for name in ("draft.tmp", "notes.txt", "settings.json.12345678.tmp"):
        (tmp_path / name).write_text("mine")
    run(tmp_path, NoiseSource(32))
    assert (tmp_path / "draft.tmp").exists() and (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "settings.json.12345678.tmp").exists()


def test_of_two_runs_that_begin_at_once_with_other_settings_one_is_refused(tmp_path, monkeypatch):
    """The other writes its settings between this one's look and its write."""
    names = StorageFolder.file_names
    other = Settings(9, "other", "t", "v", 1, ("16x16",), 16)

    def late(self):
        listed = names(self)
        shards.write_json(StorageFolder(tmp_path), shards.SETTINGS, other)
        return listed

    monkeypatch.setattr(StorageFolder, "file_names", late)
    with pytest.raises(InputError, match="begun with records=9 instead of 32"):
        run(tmp_path, NoiseSource(32))
    assert shards.read_json(StorageFolder(tmp_path), shards.SETTINGS, Settings) == other


def test_a_source_ends_export_and_prepare_when_it_is_gone(tmp_path):
    gone = NoiseSource(64, bad=tuple(range(20, 64)))
    with pytest.raises(SourceError, match=r"5 records in a row, 20 to 24.*--max-consecutive-rejects=0"):
        export(gone, tmp_path / "out", progress=False, max_consecutive_rejects=5)
    assert not (tmp_path / "out" / "records.jsonl").exists()
    with pytest.raises(SourceError, match=r"5 records in a row, 20 to 24"):
        prepare(gone, tmp_path / "sets", "gone", progress=False, max_consecutive_rejects=5)


def test_an_export_is_not_written_into_a_folder_of_tokens(tmp_path):
    run(tmp_path, NoiseSource(16, bad=(3,)))
    before = (tmp_path / "rejects.jsonl").read_bytes()
    with pytest.raises(ExistingFileError, match="pretokenize wrote"):
        export(NoiseSource(16), tmp_path, progress=False)
    assert (tmp_path / "rejects.jsonl").read_bytes() == before


def test_file_names_of_any_bytes_are_exported(tmp_path):
    names = [b"caf\xe9 [a] #1.png", "猫{0}%s.png".encode(), b"two\nlines.png"]
    for number, name in enumerate(names):
        noise((20, 20), number).save(tmp_path / "picture.png")
        (tmp_path / "picture.png").rename(os.path.join(tmp_path, os.fsdecode(name)))
        Path(os.path.join(tmp_path, os.fsdecode(name.replace(b".png", b".txt")))).write_text("a picture")
    path, good, bad = export(open_source(f"folder:{tmp_path}"), tmp_path / "out", progress=False)
    assert good + bad == 3
    for line in path.read_text().split("\n")[:-1]:
        assert Path(json.loads(line)["image"][0]).is_file()


INTERRUPTED = """
import sys, time
from test_pretokenize_rejects import NoiseSource, run
from lumina_jax.cli.ending import signals
class Slow(NoiseSource):
    def __getitem__(self, index):
        if index >= 40:
            print("reading", flush=True)
            time.sleep(0.2)
        return super().__getitem__(index)
try:
    with signals("pretokenize"):
        run({out!r}, Slow(3000))
except KeyboardInterrupt as interrupt:
    print(*interrupt.__notes__, file=sys.stderr)
    sys.exit(130)
"""


def test_a_ctrl_c_leaves_one_line_that_says_what_is_kept(tmp_path):
    folder = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder.parents[1])]),
        "JAX_PLATFORMS": "cpu",
    }
    script = INTERRUPTED.format(out=str(tmp_path))
    child = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Only then everything is imported and compiled: an interrupt of an import ends a process at once.
    assert [child.stdout.readline() for _ in range(30)] == ["reading\n"] * 30
    child.send_signal(signal.SIGINT)
    _, words = child.communicate(timeout=60)
    made = len(list(tmp_path.glob("*.tokens")))
    assert child.returncode == 130
    assert words == f"{made} of 188 shards in {tmp_path} are kept; give the same command again to go on\n"
    assert not list(tmp_path.glob("*.tmp"))
