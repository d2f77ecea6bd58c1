"""Compiled programs kept from one start to the next: JAX's persistent compilation cache, in the user's cache folder by default.

JAX names an entry by the program, the compiler's options and flags, the devices and the version of jaxlib, and locks the folder
while it reads, writes or evicts. Here stand the place, the limit, and what happens to entries that a kill or a disk damaged.
"""

import errno
import hashlib
import json
import os
import platform
import re
import stat
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import filelock
import jax

from lumina_jax.errors import UserError
from lumina_jax.progress import duration, print_line, waiting
from lumina_jax.storage import atomic_write_text

LIMIT_BYTES = 2 << 30
"""The least recently used entries of a folder go when it holds more; JAX_COMPILATION_CACHE_MAX_SIZE sets another limit."""
LOCK_SECONDS = 2.0
"""How long a start waits for the lock of the folder before it leaves unfinished entries to the next."""
ENTRY, TIME, LOCK = "-cache", "-atime", ".lockfile"
"""The names that JAX gives to an entry, the time of its last use, and its lock."""
FAILED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)
COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event that a program was compiled, or read from the cache."""
MOST_USES = 200
"""How many of the newest lines of uses.json are kept."""
CPU_INFO = Path("/proc/cpuinfo")


def default_folder() -> Path:
    """The folder of programs for processors such as this one, in XDG_CACHE_HOME or ~/.cache.

    Machines with other instructions, which may share a home, have folders of their own: JAX's keys do not tell processors apart.
    Raises OSError for a user without a home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        caches = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "this user has no home folder", "~/.cache") from error
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.is_file() else [platform.processor()]
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
    return caches / "lumina_jax" / "compiled" / f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


def keep_programs(folder: str = "", off: bool = False) -> Path | None:
    """Keeps what this process compiles in ``folder``; call it before the first compilation. Returns the folder, None without one.

    An empty ``folder`` is JAX_COMPILATION_CACHE_DIR with JAX's own settings, else :func:`default_folder`. ``off``: nothing is kept
    or read. A default folder that cannot be written, or that others can write, is named in a line, and nothing is kept.
    """
    if off:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if not folder and jax.config.jax_compilation_cache_dir:
        return _watched(Path(jax.config.jax_compilation_cache_dir))
    try:
        place = Path(folder).absolute() if folder else default_folder()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder:
            _check_own(place)
        _drop_unfinished(place)
    except OSError as error:
        where = error.filename or folder
        print_line(
            f"compiled programs are not kept: {where}: {error.strerror}; give another folder: --compile-cache FOLDER"
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small ones take a second together
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # they know no limit
    if jax.config.jax_compilation_cache_max_size == -1:
        jax.config.update("jax_compilation_cache_max_size", LIMIT_BYTES)
    return _watched(place)


def _check_own(folder: Path) -> None:
    """Raises PermissionError where others can write into the default folder: who can write an entry can run code as its reader."""
    for path in (folder, *folder.parents[:2]):
        status = path.stat()
        # The folders above it are made with the user's umask, which may let his group write.
        others = stat.S_IWOTH | (stat.S_IWGRP if path == folder else 0)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & others:
            reason = "other users can write there, and so run code as you (chown it to yourself, chmod go-w)"
            raise PermissionError(errno.EPERM, reason, str(path))


def _drop_unfinished(folder: Path) -> None:
    """Removes the entries without a time of use, which a killed process left: they may be cut short."""
    lock = filelock.FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        with lock:
            for entry in folder.glob(f"*{ENTRY}"):
                if not _time_of(entry).exists():
                    entry.unlink()
    except filelock.Timeout:  # another process evicts; whoever starts next looks again
        return


def _time_of(entry: Path) -> Path:
    return entry.with_name(entry.name.removesuffix(ENTRY) + TIME)


def _watched(folder: Path) -> Path:
    """``folder``; what JAX warns of from now on is a line each, and the entry that cannot be read makes room for a new one."""
    if not isinstance(warnings.showwarning, CacheWarnings):
        warnings.showwarning = CacheWarnings(folder, warnings.showwarning)
    return folder


class CacheWarnings:
    """``warnings.showwarning`` that handles JAX's warnings on the entries in ``folder``, and leaves others to ``show``.

    JAX compiles what it cannot read, but would keep the damaged entry for ever.
    """

    def __init__(self, folder: Path, show):
        self._folder, self._show, self._said = folder, show, set()

    def __call__(self, message, category, filename, lineno, file=None, line=None) -> None:
        if not (failed := FAILED.match(str(message))):
            return self._show(message, category, filename, lineno, file, line)
        doing, name, reason = failed.groups()
        damaged = remove_damaged(self._folder, name) if doing == "reading" else 0
        if doing not in self._said:
            self._said.add(doing)
            outcome = "it is damaged and is compiled again" if damaged else "this run goes on without it"
            print_line(f"{doing} the compiled program {name} in {self._folder}: {reason.splitlines()[0]}; {outcome}")


def remove_damaged(folder: Path, name: str) -> int:
    """Removes the entries of the program ``name`` in ``folder`` that are not whole, as their checksums say; returns how many."""
    damaged = []
    for entry in folder.glob(f"{name}-*{ENTRY}"):
        try:
            zlib.decompress(entry.read_bytes())
        except zlib.error:
            damaged.append(entry)
        except FileNotFoundError:  # evicted meanwhile
            continue
    for entry in damaged:
        entry.unlink(missing_ok=True)
        _time_of(entry).unlink(missing_ok=True)
    return len(damaged)


def cached_programs() -> Path | None:
    """The folder that this process keeps programs in; None where it keeps none on a disk."""
    folder = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    return Path(folder) if folder and "://" not in folder else None


@contextmanager
def compiling(tokens: int, then: str, model: str) -> Iterator[None]:
    """A wait for the programs of ``tokens`` tokens of ``model``, which names its shapes and what samples, and for ``then``.

    Says after a second whether they are compiled, and how long that takes as far as it is known, or loaded from the cache.
    """
    uses = ProgramUses(cached_programs(), f"{model} {tokens} jax {jax.__version__}", model)
    begun, seconds = time.time(), []

    def heard(event: str, duration: float, **_: object) -> None:
        if event == COMPILED:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        with waiting(uses.line(tokens, then)):
            yield
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    uses.note(begun, sum(seconds))


class ProgramUse(NamedTuple):
    """The names of the ``entries`` that some work needs, the ``seconds`` of compiling them, and its ``family`` (ProgramUses)."""

    family: str
    entries: list[str]
    seconds: float


class ProgramUses:
    """Which entries of the cache in ``folder`` the last process that did ``key`` used, and the seconds it compiled for.

    ``family`` names what takes about as long. They stand in uses.json beside the entries; a file that cannot be read is as none.
    """

    FILE = "uses.json"

    def __init__(self, folder: Path | None, key: str, family: str):
        self._file = folder and folder / self.FILE
        self._key, self._family = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (key, family))
        self._uses: dict[str, ProgramUse] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # all it costs is a line that is less precise
            text = self._file.read_text() if self._file else "{}"
            self._uses = {name: ProgramUse(**fields) for name, fields in json.loads(text).items()}

    def line(self, tokens: int, then: str) -> str:
        """What the process waits for, in words."""
        if self._file is None:
            return f"compiling for {tokens:,} tokens, then {then}"
        known = self._uses.get(self._key)
        if known and all((self._file.parent / name).exists() for name in known.entries):
            return f"loading compiled programs for {tokens:,} tokens, then {then}"
        times = [use.seconds for use in self._uses.values() if use.family == self._family and use.seconds]
        about = f", about {duration(times[-1])}" if times else ""
        return f"compiling for {tokens:,} tokens, the first time{about}, then {then}"

    def note(self, begun: float, seconds: float) -> None:
        """Keeps the entries used since the time ``begun``, and the ``seconds`` of compiling where it took any."""
        if self._file is None or not self._file.parent.is_dir():
            return
        used = sorted(
            entry.name
            for entry in self._file.parent.glob(f"*{ENTRY}")
            if _time_of(entry).exists() and _time_of(entry).stat().st_mtime >= begun
        )
        if not used:  # a cache without limit writes no times of use
            return
        before = self._uses.pop(self._key, ProgramUse(self._family, [], 0.0))
        # What a thread of this process has compiled before is not read again.
        kept = [name for name in before.entries if (self._file.parent / name).exists()]
        entries = sorted({*used, *kept})
        self._uses[self._key] = ProgramUse(self._family, entries, max(round(seconds, 1), before.seconds))
        newest = {name: use._asdict() for name, use in [*self._uses.items()][-MOST_USES:]}
        with suppress(OSError, UserError):
            atomic_write_text(self._file, json.dumps(newest))
