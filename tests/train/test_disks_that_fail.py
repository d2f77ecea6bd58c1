"""Whatever a disk refuses: each verb ends with one line that names the file and the cure, and goes on when the disk is mended.

tests/bench/faults.py does the same to whole programs, on disks that are really full or read-only.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import restored, save, small_cfg

import run
from lumina_jax.cli.ending import tell_error
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

REPO = Path(__file__).resolve().parents[2]
FAULTS = {errno.ENOSPC: EXIT_ERROR, errno.EDQUOT: EXIT_ERROR, errno.EROFS: EXIT_ERROR, errno.EIO: EXIT_RESTART}
"""Error numbers of a disk, and the exit codes that tell whether a restart may help."""


def pretokenize(folder: Path) -> int:
    paths = [f"data.path={folder}/tokens", f"data.tokenizer={REPO}/assets/toy", f"vq.path={REPO}/assets/toy/vq.npz"]
    words = ["--source", "toy:16", "--shard-records", "8", *paths]
    return run.main(["pretokenize", f"{REPO}/configs/toy_stage1.py", *words])


def convert(folder: Path) -> int:
    return run.main(["convert", "import", f"{REPO}/assets/toy", str(folder / "toy")])


def checkpoints(folder: Path) -> int:
    """Saves step 2 where there is none, then 4."""
    cfg = small_cfg(folder)
    try:
        save(cfg, *range(restored(cfg) + 2, 5, 2))
    except OSError as error:
        return tell_error("run.py train", error)
    return 0 if restored(cfg) == 4 else 1


PROGRAMS = {"pretokenize": pretokenize, "convert": convert, "train": checkpoints}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what of a save was still under way
@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_disk_that_refuses_is_named_and_the_same_command_goes_on(program, number, tmp_path, monkeypatch, capsys):
    begin: Callable[[Path], int] = PROGRAMS[program]
    with monkeypatch.context() as disk:
        for name in ("replace", "rename"):
            disk.setattr(os, name, refusing(getattr(os, name), number, str(tmp_path)))
        disk.setattr("lumina_jax.faults.FIRST_PAUSE", 0)
        assert begin(tmp_path) == FAULTS[number]
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("run.py ") and str(tmp_path) in line and os.strerror(number) in line
    assert any(cure in line for cure in ("check ", "mend that", "free space", "give one that can be written"))
    assert begin(tmp_path) == 0
    assert not [path.name for path in tmp_path.rglob("*") if ".tmp" in path.name or "unfinished" in path.name]


def refusing(function: Callable, number: int, below: str) -> Callable:
    """``function``, of a file, as it is on a disk that refuses it below a folder."""

    def call(file: object, *arguments: object, **options: object) -> object:
        if os.fspath(file).startswith(below):
            raise OSError(number, os.strerror(number), os.fspath(file))
        return function(file, *arguments, **options)

    return call
