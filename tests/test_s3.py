"""s3:// addresses against a server of that protocol: what works as on a disk, and what is refused in one line before any work."""

from pathlib import Path

import numpy as np
import pytest
from gcs_server import GcsFault

import run
from lumina_jax.errors import ExistingFileError, MissingFileError
from lumina_jax.first_checks import check_readable, check_writable
from lumina_jax.places import NewFile, copy_file, place, read_range
from lumina_jax.storage import StorageFolder, atomic_write
from lumina_jax.train.integrity import COMMITTED

REPO = Path(__file__).resolve().parents[1]
CONFIG = "configs/toy_stage1.py"
SMALL = ["optim.steps=4", "optim.warmup=1", "save_every=2", "model.layers=1", "mesh.unroll=1", "data.buckets=50"]


def test_files_of_s3_are_whole_and_never_replaced_unasked(s3, tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (6 << 20) + 13, np.uint8)
    bucket = place("s3://bucket")
    check_writable("s3://bucket/out")
    assert not s3.buckets.objects("bucket")
    file = NewFile(bucket / "a.bin")
    file.write(content.tobytes())
    assert not (bucket / "a.bin").exists()
    file.close()
    check_readable("s3://bucket/a.bin")
    s3.faults += [GcsFault("GET .*a.bin", status=503), GcsFault("GET .*a.bin", cut=0.5)]
    assert (read_range(bucket / "a.bin", 5, len(content)) == content[5:]).all()
    copy_file(bucket / "a.bin", tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == content.tobytes()
    with pytest.raises(ExistingFileError), atomic_write(bucket / "a.bin", new=True) as temporary:
        temporary.write_text("another")
    given_up = NewFile(bucket / "c.bin")
    given_up.write(content.tobytes())
    given_up.discard()
    del given_up
    assert [*s3.buckets.objects("bucket")] == ["a.bin"]


def test_a_folder_of_s3_is_read_and_written_like_one_of_a_disk(s3):
    folder = StorageFolder("s3://bucket/run")
    folder.write_text("deep/x.txt", "one\n")
    folder.write_new_text("y.txt", "two\n")
    folder.write_new_text("y.txt", "three\n")
    assert folder.sizes() == {"deep": 0, "y.txt": 4} and folder.exists("y.txt") and not folder.exists("z")
    assert folder.read_ranges([("y.txt", 1, 3), ("deep/x.txt", 0, 2)], 2) == [b"wo", b"on"]
    for missing in ("s3://gone/out", "s3://gone"):
        with pytest.raises(MissingFileError, match="its bucket is not there"):
            check_writable(missing)


def test_a_run_on_s3_goes_on_and_ends_as_one_on_a_disk(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    objects = s3.buckets.objects("bucket")
    names = {"out": "out", "data.path": "tokens", "data.tokenizer": "tokenizer", "vq.path": "vq.npz"}
    metrics = []
    for root in (tmp_path.as_posix(), "s3://bucket"):
        paths = [f"{field}={root}/{name}" for field, name in names.items()]
        assert run.main(["pretokenize", CONFIG, "--source", "toy:32", "--fit", *paths]) == 0
        assert run.main(["train", CONFIG, *SMALL, *paths]) == 0
        metrics.append((place(root) / "out/metrics.jsonl").read_bytes())
    del objects[f"out/checkpoints/4/{COMMITTED}"]  # what a kill during the last save leaves
    s3.faults += [GcsFault("GET", status=503, times=2, skip=5), GcsFault("PUT", status=503, times=2, skip=1)]
    assert run.main(["train", CONFIG, *SMALL, *paths]) == 0
    metrics.append(objects["out/metrics.jsonl"].data)
    assert metrics[0] == metrics[1] == metrics[2] and not (REPO / "s3:").exists()
    assert f"out/checkpoints/4/{COMMITTED}" in objects, capsys.readouterr()


def test_models_and_pictures_go_in_and_out_of_s3(s3, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.chdir(REPO)
    for words in (
        "convert import assets/toy s3://bucket/ours",
        "convert inspect s3://bucket/ours --deep",
        "convert export s3://bucket/ours s3://bucket/hf --layout hf",
        "convert verify s3://bucket/hf assets/toy --by weights",
        "sample --model s3://bucket/hf --prompt red --size 32x32 --out s3://bucket/painted",
    ):
        assert run.main(words.split()) == 0, capsys.readouterr()
    objects = s3.buckets.objects("bucket")
    assert "painted/000-0.png" in objects
    whole = objects["hf/model.safetensors"].data
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    s3.buckets.put("bucket", "hf/model.safetensors", flipped, {})
    assert run.main(["sample", "--model", "s3://bucket/hf", "--prompt", "red", "--out", str(tmp_path)]) == 2
    assert "s3://bucket/hf/model.safetensors is damaged" in capsys.readouterr().err
