"""Compiled programs from one start to the next: where they are kept, how many, and what is left of damaged ones."""

import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from lumina_jax import compile_cache
from lumina_jax.compile_cache import CacheWarnings, ProgramUses, default_folder, remove_damaged

REPO = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
import jax
from lumina_jax.compile_cache import compiling, keep_programs

folder = keep_programs(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
with compiling(7, "adding", "a model"):
    results = [jax.jit(lambda x, n=n: x * n + 1)(jax.numpy.arange(4.0)).tolist() for n in range(3)]
print(results, sum(hits), folder)
"""
RESULT = "[[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0, 7.0]]"


def start(folder: Path | str, wait: bool = True, **variables: str):
    """A process that compiles three programs with the cache in ``folder``, or in the default one for ""."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "JAX_PERS"))}
    options = dict(cwd=REPO, env=known | variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], **options)
    return ended(process) if wait else process


def ended(process) -> tuple[int, str]:
    """(How many programs came from the cache, what stood on stderr) of a process whose results are right."""
    out, err = process.communicate()
    assert process.returncode == 0 and out.startswith(RESULT), (out, err)
    lines = [line for line in err.splitlines() if not line.endswith("then adding")]  # said where a second has passed
    return int(out.removeprefix(RESULT).split()[0]), "\n".join(lines)


def test_damaged_unfinished_and_strange_entries_are_compiled_again(tmp_path):
    assert start(tmp_path)[0] == 0
    entries = sorted(tmp_path.glob("jit__lambda*-cache"))
    assert len(entries) == 3
    whole, (flipped, cut, unfinished) = [entry.read_bytes() for entry in entries], entries
    flipped.write_bytes(bytes([*whole[0][:200], whole[0][200] ^ 1, *whole[0][201:]]))
    cut.write_bytes(whole[1][: len(whole[1]) // 2])
    unfinished.write_bytes(b"")
    unfinished.with_name(unfinished.name.replace("-cache", "-atime")).unlink()
    hits, err = start(tmp_path)
    assert "is damaged and is compiled again" in err and len(err.splitlines()) == 1
    for entry, content in zip(entries, whole, strict=True):
        assert len(zlib.decompress(entry.read_bytes())) == len(zlib.decompress(content))
    again, err = start(tmp_path)
    assert again == hits + 3 and not err


def test_processes_at_once_share_a_folder_and_the_oldest_entries_go(tmp_path):
    limit = 9_000
    processes = [start(tmp_path, wait=False, JAX_COMPILATION_CACHE_MAX_SIZE=str(limit)) for _ in range(2)]
    assert [ended(process)[1] for process in processes] == ["", ""]
    entries = [path.stat().st_size for path in tmp_path.glob("*-cache")]
    assert entries and sum(entries) <= limit


def test_the_folder_is_the_user_s_and_of_this_kind_of_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = default_folder()
    assert ours.parent == tmp_path / "lumina_jax" / "compiled"
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu sse\n")
    monkeypatch.setattr(compile_cache, "CPU_INFO", tmp_path / "cpuinfo")
    assert default_folder() not in (ours, ours.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder().is_relative_to(Path.home() / ".cache")


def test_a_default_folder_that_cannot_be_made_is_a_line(tmp_path):
    (tmp_path / "lumina_jax").write_text("a file")
    hits, err = start("", XDG_CACHE_HOME=str(tmp_path))
    assert hits == 0 and err.startswith("compiled programs are not kept: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_default_folder_that_others_can_write_is_a_line(above, tmp_path, monkeypatch, capsys):
    """Whoever writes an entry there has his code run by the next start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_folder()
    folder.mkdir(mode=0o700, parents=True)
    opened = (folder, *folder.parents)[above]
    opened.chmod(0o777)
    monkeypatch.setattr(compile_cache, "jax", SimpleNamespace(config=SimpleNamespace(jax_compilation_cache_dir=None)))
    assert compile_cache.keep_programs() is None
    said = capsys.readouterr().err
    assert f"compiled programs are not kept: {opened}: other users can write there" in said and said.count("\n") == 1


def test_a_folder_of_another_user_is_not_ours_and_that_of_the_umask_is(tmp_path, monkeypatch):
    folder = tmp_path / "lumina_jax/compiled/kind"
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o775)
    compile_cache._check_own(folder)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid():
        with pytest.raises(PermissionError):
            compile_cache._check_own(folder)
        return
    os.chown(folder, 4321, -1)
    monkeypatch.undo()
    with pytest.raises(PermissionError):
        compile_cache._check_own(folder)


def test_a_user_without_a_home_is_a_line(monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(compile_cache, "jax", SimpleNamespace(config=SimpleNamespace(jax_compilation_cache_dir=None)))
    assert compile_cache.keep_programs() is None
    assert "not kept: ~/.cache: this user has no home folder; give another folder" in capsys.readouterr().err


def test_other_warnings_are_shown_and_failures_said_once(tmp_path, capsys):
    shown = []
    show = CacheWarnings(tmp_path, lambda *arguments: shown.append(arguments[0]))
    show("another", UserWarning, "f.py", 1)
    for _ in range(2):
        show("Error writing persistent compilation cache entry for 'jit_f': OSError: full", UserWarning, "f.py", 1)
    assert shown == ["another"]
    assert capsys.readouterr().err.count("OSError: full; this run goes on without it") == 1
    assert remove_damaged(tmp_path, "jit_f") == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"k": 1}'])
def test_the_wait_says_what_is_true(content, tmp_path):
    (tmp_path / ProgramUses.FILE).write_text(content)
    first = "compiling for 1,024 tokens, the first time, then painting"
    uses = ProgramUses(tmp_path, "key", "family")
    assert uses.line(1024, "painting") == first
    for name in ("jit_f-1-cache", "jit_f-1-atime"):
        (tmp_path / name).touch()
    uses.note(0.0, 61.0)
    assert (
        ProgramUses(tmp_path, "key", "family").line(1024, "painting").startswith("loading compiled programs for 1,024")
    )
    other = ProgramUses(tmp_path, "other", "family").line(1024, "painting")
    assert other == "compiling for 1,024 tokens, the first time, about 1 min 1 s, then painting"
    (tmp_path / "jit_f-1-cache").unlink()
    assert ProgramUses(tmp_path, "key", "family").line(1024, "painting") == other
    assert ProgramUses(None, "key", "family").line(1024, "painting") == "compiling for 1,024 tokens, then painting"
