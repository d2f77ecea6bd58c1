"""Checkpoints on a store: read by ranges, written front to back, the same bytes as on a disk, whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from checkpoints import Sizes, write_meta  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from convert import convert as conversion  # noqa: E402
from convert import load_model, tensor_writers  # noqa: E402
from convert.convert import MARK, Target, convert, open_source  # noqa: E402
from convert.describe import describe  # noqa: E402
from convert.tensor_files import open_tensors  # noqa: E402
from convert.verify import verify  # noqa: E402
from lumina_jax import places  # noqa: E402
from lumina_jax.errors import InputError, MissingFileError, StorageError  # noqa: E402
from lumina_jax.places import copy_file  # noqa: E402

TENSORS = {
    "plain": torch.arange(24.0).reshape(4, 6),
    "half": torch.arange(6).to(torch.bfloat16),
    "whole": torch.arange(5, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3.0),
}
MODEL = Sizes(heads=4, kv_heads=2, shards=2, layers=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_meta(tmp_path_factory.mktemp("stores") / "start", MODEL)


def upload(folder: Path, target) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            copy_file(file, target / file.relative_to(folder).as_posix())


def contents(folder) -> dict[str, bytes]:
    """Name -> bytes of the files in a folder of either kind."""
    if isinstance(folder, Path):
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    names = folder.fs.find(folder.path)
    return {name.removeprefix(f"{folder.path}/"): folder.fs.cat_file(name) for name in names}


def write_file(kind: str, file: Path) -> None:
    views = TENSORS | {"turned": TENSORS["plain"].t(), "below": TENSORS["plain"][1:]}
    if kind == "safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in views.items()}, file)
    else:
        torch.save({"state_dict": views}, file, _use_new_zipfile_serialization=kind != "legacy")


@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", "safetensors"), ("zip", "pth"), ("legacy", "ckpt")])
def test_tensors_of_a_store_are_those_of_the_disk(kind, suffix, memory, tmp_path, monkeypatch):
    local, remote = tmp_path / f"a.{suffix}", memory / f"a.{suffix}"
    write_file(kind, local)
    copy_file(local, remote)
    here, there, ranges = open_tensors(local), open_tensors(remote), []
    plain = remote.fs.cat_ranges
    monkeypatch.setattr(
        remote.fs,
        "cat_ranges",
        lambda p, starts, stops, **o: ranges.append((starts, stops)) or plain(p, starts, stops, **o),
    )
    assert list(here) == list(there)
    for name, array in here.items():
        assert (array.shape, array.dtype) == (there[name].shape, there[name].dtype), name
        if array.ndim:
            assert len(array) == len(there[name])
    assert ranges == []  # nothing but headers is read until a tensor is used
    for name, array in here.items():
        assert np.asarray(there[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name
    assert (there["plain"][[2, 0]] == here["plain"][[2, 0]]).all()
    assert np.asarray(there["half"], np.float32).dtype == np.float32


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "empty"])
def test_a_damaged_file_of_a_store_is_refused_when_it_is_opened(damage, memory, tmp_path):
    write_file("safetensors", tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    changed = {"cut": content[:-1], "longer": content + b"x", "header": b"\xff" * 8 + content[8:], "empty": b""}
    (memory / "a.safetensors").write_bytes(changed[damage])
    with pytest.raises(InputError, match=r"memory://bucket/a\.safetensors is damaged or cut short"):
        open_tensors(memory / "a.safetensors")
    with pytest.raises(MissingFileError, match=r"memory://bucket/gone\.pth"):
        open_tensors(memory / "gone.pth")


@pytest.mark.parametrize("target", [Target("hf", 3), Target("lumina", 2, binary=True), Target("meta")], ids=str)
def test_a_conversion_on_a_store_makes_the_bytes_of_one_on_a_disk(target, checkpoint, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "BLOCK_BYTES", 1000)
    upload(checkpoint, memory / "start")
    convert(checkpoint, tmp_path / "out", target, show=False)
    convert("memory://bucket/start", "memory://bucket/out", target, show=False)
    here, there = contents(tmp_path / "out"), contents(memory / "out")
    assert here.keys() == there.keys() and [name for name in here if here[name] != there[name]] == []
    folder = "models/30b" if target.layout == "meta" else ""
    assert verify(memory / "out" / folder if folder else memory / "out", checkpoint, "weights", show=False).same
    assert describe(memory / "out").problems == () and str(open_source(memory / "out").folder).startswith("memory://")


def test_a_model_of_a_store_is_loaded_without_a_disk(checkpoint, memory):
    convert(checkpoint, memory / "hf", Target("hf"), show=False)
    (here, cfg), (there, other) = load_model(checkpoint), load_model("memory://bucket/hf")
    assert cfg == other and (np.asarray(here.head[...]) == np.asarray(there.head[...])).all()


def test_what_a_conversion_that_was_killed_left_is_refused_and_made_anew(checkpoint, memory, monkeypatch):
    convert(checkpoint, memory / "out", Target("hf"), show=False)
    whole = contents(memory / "out")
    (memory / "out" / MARK).write_text("")
    (memory / "out" / "model-00009-of-00009.safetensors").write_bytes(b"left")
    with pytest.raises(InputError, match="is what an interrupted conversion left"):
        open_source(memory / "out")
    convert(checkpoint, memory / "out", Target("hf"), show=False)
    assert contents(memory / "out") == whole

    def full(self, array):
        raise OSError("503 Service Unavailable")

    monkeypatch.setattr(tensor_writers.SafetensorsWriter, "append", full)
    with pytest.raises(StorageError, match=r"memory://bucket/new/model\.safetensors cannot be written \(503"):
        convert(checkpoint, memory / "new", Target("hf"), show=False)
    assert not (memory / "new").exists()


def test_orbax_says_which_stores_it_knows_before_anything_is_written(checkpoint, memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"memory://bucket/ours: .* gs://, s3://"):
        convert(checkpoint, memory / "ours", Target("ours"), show=False)
    assert memory.fs.store == {} and list(tmp_path.iterdir()) == []


def test_the_layout_of_the_zip_of_torch_is_that_of_torch(checkpoint, memory, tmp_path):
    upload(checkpoint, memory / "start")
    convert(memory / "start", memory / "out", Target("meta"), show=False)
    for file in sorted(checkpoint.glob("*.pth")):
        copy_file(memory / "out/models/30b" / file.name, tmp_path / file.name)
        read, wanted = (torch.load(path, weights_only=True, mmap=True) for path in (tmp_path / file.name, file))
        assert read.keys() == wanted.keys() and all(torch.equal(read[name], wanted[name]) for name in wanted)
    assert json.loads((memory / "out/models/30b/params.json").read_text())["model"]["dim"] == MODEL.width
    assert conversion.MARK not in contents(memory / "out")
