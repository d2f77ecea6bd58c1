"""inspect --deep reads every number; what is exported or downloaded is compared with its checksums before it is imported."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run as command_line
from convert.convert import Target, convert
from convert.deep import verified
from convert.describe import FolderReport, describe
from convert.file_sums import DOWNLOADS, SUMS
from convert.orbax_folder import OrbaxSource
from lumina_jax.config import Experiment, MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.sharding import make_mesh
from lumina_jax.train import chunks, integrity
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.step import new_state

TINY = ModelConfig(vocab=48, width=32, layers=2, heads=8, kv_heads=4, head_dim=4, mlp=40, qk_groups=2)
EXPORTED = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run's checkpoint, its weights imported, and exported as two safetensors."""
    root = tmp_path_factory.mktemp("whole")
    cfg = Experiment(out=str(root / "run"), model=TINY)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: new_state(cfg))._replace(key=None)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    saver = Saver(cfg)
    saver.save(7, state._replace(key=jax.random.key(0)))
    saver.close()
    convert(root / "run", root / "ours", Target("ours"), make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]), show=False)
    convert(root / "run", root / "hf", Target("hf", shards=2), show=False)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """A function that copies one of the folders, to be damaged."""
    return lambda name: Path(shutil.copytree(whole / name, tmp_path / name))


def deep(folder: Path) -> FolderReport:
    return verified(describe(folder), folder)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def numbers_file(checkpoint: Path) -> tuple[Path, int]:
    """The file of a checkpoint that holds the embedding, and where it begins."""
    embedding = np.asarray(OrbaxSource(checkpoint).read(*embedding_of(checkpoint), {})).tobytes()
    found = ((path, path.read_bytes().find(embedding)) for path in checkpoint.rglob("*") if path.is_file())
    return next((path, place) for path, place in found if place >= 0)


def embedding_of(checkpoint: Path):
    return next((row, 0) for row in OrbaxSource(checkpoint).rows if row.path == "embedding")


@pytest.mark.parametrize(
    ("name", "words"), [("run", "all numbers of its"), ("ours", "all numbers"), ("hf", "all bytes")]
)
def test_what_is_whole_is_verified(whole, name, words):
    report = deep(whole / name)
    assert not report.problems, report.text()
    assert any(topic == "verified" and text.startswith(words) for topic, text in report.findings)


@pytest.mark.parametrize("name", ["run", "ours"])
def test_a_number_that_changed_is_named_and_neither_converted_nor_verified(copy, name, capsys):
    folder = copy(name)
    file, place = numbers_file(next(folder.glob("checkpoints/*")))
    flip(file, place + 5)
    assert not describe(folder).problems
    (problem,) = deep(folder).problems
    assert "is damaged: the numbers of model/embedding are not those that were saved" in problem
    with pytest.raises(InputError, match=r"model/embedding in .* is damaged or cut short"):
        convert(folder, folder.with_name("out"), Target("hf"), show=False)
    assert command_line.main(["convert", "inspect", str(folder), "--deep"]) == 1
    assert "the numbers of model/embedding" in capsys.readouterr().out


def test_a_conversion_says_that_an_older_checkpoint_cannot_be_verified(whole, tmp_path, monkeypatch):
    target, out = Target("ours"), tmp_path / "old"
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    monkeypatch.setattr(chunks, "CHECKED", chunks.CHECKED[:1])
    assert not any("older version" in note for note in convert(whole / "run", out, target, mesh, show=False))
    again = (tmp_path / "again", target, mesh)
    (note,) = (note for note in convert(out, *again, show=False) if "older version" in note)
    assert note.startswith(str(out)) and note.endswith("compare it with run.py convert inspect --deep")
    monkeypatch.setattr(integrity, "saved_checksums", lambda checkpoint: {})
    assert integrity.unverified(OrbaxSource(out).checkpoint).endswith("it has none of its arrays either")


@pytest.mark.parametrize("file", EXPORTED)
def test_a_byte_that_changed_in_an_export_is_noticed_before_it_is_imported(copy, file):
    folder = copy("hf")
    assert set(json.loads((folder / SUMS).read_text())) == set(EXPORTED)
    size = (folder / file).stat().st_size
    for place in (size // 2, size - 1):
        flip(folder / file, place)
        with pytest.raises(
            InputError, match=rf"{file} is damaged: its bytes are not those that were written; .*{SUMS}"
        ):
            convert(folder, folder.with_name("out"), Target("ours"), show=False)
        (problem,) = deep(folder).problems
        assert file in problem
        flip(folder / file, place)
    convert(folder, folder.with_name("out"), Target("ours"), show=False)


def test_a_download_is_compared_with_what_the_hub_said_of_it(copy):
    folder = copy("hf")
    (folder / SUMS).unlink()
    assert any("no checksums" in note for note in deep(folder).notes)
    notes = folder / DOWNLOADS
    notes.mkdir(parents=True)
    for file in EXPORTED:
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        (notes / f"{file}.metadata").write_text(f"commit\n{digest}\n1700000000.0\n")
    (notes / "config.json.metadata").write_text("commit\n0123456789\n1700000000.0\n")  # a small file has no SHA-256
    assert not deep(folder).problems
    flip(folder / EXPORTED[0], 2000)
    (problem,) = deep(folder).problems
    assert EXPORTED[0] in problem
