"""The whole road with nothing but gs:// addresses: every verb writes there the bytes that it writes on a disk."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from gcs_server import GcsFault
from PIL import Image

import run
from lumina_jax.places import copy_file, place
from lumina_jax.pods.report import output_folder
from lumina_jax.storage import CLAIMS

REPO = Path(__file__).resolve().parents[1]
STORE = "gs://bucket"


def faults() -> list[GcsFault]:
    """What a store does to every verb: it is busy, slow, cuts what it sends short, and loses its answer."""
    return [
        GcsFault("GET .*alt=media", status=503, skip=1),
        GcsFault("GET .*alt=media", cut=0.5, skip=2),
        GcsFault("GET .*alt=media", seconds=0.3, skip=1, times=2),
        GcsFault("POST .*upload", status=429),
        GcsFault("POST .*upload", reset=True, late=True, skip=1),
    ]


def upload(folder: Path, target) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            copy_file(file, target / file.relative_to(folder).as_posix())


def contents(address: str) -> dict[str, bytes]:
    """Name -> bytes of the files below a folder, but for the record of who wrote them."""
    folder = place(address)
    if isinstance(folder, Path):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    else:
        names = folder.fs.find(folder.path)
        files = {name.removeprefix(f"{folder.path}/"): folder.fs.cat_file(name) for name in names}
    return {name: content for name, content in files.items() if name != CLAIMS}


def told(name: str, content: bytes, root: str) -> bytes:
    """What a file holds, with ROOT for ``root``; of a picture its pixels and how it says that it was made."""
    if name.endswith(".png"):
        with Image.open(io.BytesIO(content)) as image:
            content = image.tobytes() + json.dumps(image.text).encode()
    return content.replace(root.encode(), b"ROOT")


@pytest.fixture
def both(gcs, tmp_path, capsys, monkeypatch):
    """``both("sample --model ROOT/toy")`` -> stdout of the command with a disk and a bucket for ROOT: both hold
    the model of the embedded world and two pictures, and what they say is the same but for ROOT, though its store fails."""
    monkeypatch.chdir(tmp_path)
    roots = (tmp_path / "disk").as_posix(), STORE
    for root in roots:
        upload(REPO / "assets/toy", place(root) / "toy")
    for number in range(2):
        colours = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(colours).save(tmp_path / f"{number}.png")
        for root in roots:
            copy_file(tmp_path / f"{number}.png", place(root) / f"pictures/{number}.png")

    def call(words: str, alike: bool = True) -> str:
        said = []
        for root in roots:
            gcs.clear()
            gcs.faults += faults()
            assert run.main(words.replace("ROOT", root).split()) == 0, capsys.readouterr().err
            said.append(capsys.readouterr().out.replace(root, "ROOT"))
        assert said[0] == said[1] or not alike
        assert [path.name for path in tmp_path.iterdir() if ":" in path.name] == []
        return said[0]

    def same(folder: str) -> dict[str, bytes]:
        here, there = (contents(f"{root}/{folder}") for root in roots)
        unlike = [name for name in here if told(name, here[name], roots[0]) != told(name, there[name], STORE)]
        assert here.keys() == there.keys() and unlike == []
        return there

    call.same = same
    return call


def test_tokens_and_what_is_measured_on_them(both):
    fields = "data.path=ROOT/tokens data.tokenizer=ROOT/toy vq.path=ROOT/toy/vq.npz"
    both(f"pretokenize {REPO}/configs/toy_omni.py --source omni:12 --shard-records 6 {fields}")
    assert "manifest.json" in both.same("tokens")
    both(
        "data inspect ROOT/tokens --tokenizer ROOT/toy --vq ROOT/toy/vq.npz --samples 2 --out ROOT/inspected.html",
        alike=False,
    )
    both("data export --tokens ROOT/tokens --out ROOT/exported")
    both.same("exported")
    results = both("evaluate --model ROOT/toy --data ROOT/tokens --pictures ROOT/pictures --out ROOT/evaluated")
    assert json.loads(results[results.index("{") :])["held_out"]["tokens"] > 0
    assert set(both.same("evaluated")) == {"reconstruction.json", "reconstruction.png"}


def test_pictures_are_painted_into_a_bucket(both, gcs):
    for root in (Path("disk"), place(STORE)):
        lines = [{"prompt": "a red circle", "size": "32x32"}, {"task": "describe", "image": "pictures/0.png"}]
        (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    both("sample --model ROOT/toy --prompts ROOT/prompts.jsonl --grid --out ROOT/painted")
    names = both.same("painted")
    assert {"000-0.png", "samples.jsonl", "grid.png"} <= set(names)
    assert run.main(f"sample --model {STORE}/toy --prompt x --out {STORE}/painted".split()) == 2  # it holds results
    (place(STORE) / "painted/000-0.png").unlink()
    again = f"sample --model {STORE}/toy --prompts {STORE}/prompts.jsonl --out {STORE}/painted --resume"
    assert run.main(again.split()) == 0 and contents(f"{STORE}/painted") == names


def test_checkpoints_go_in_and_out_of_a_bucket(both, capsys):
    pytest.importorskip("torch")
    both("convert import ROOT/toy ROOT/ours")
    both("convert export ROOT/ours ROOT/back --layout hf --shards 2")
    both.same("back")
    for words in (f"verify {STORE}/ours {STORE}/toy --by weights", f"inspect {STORE}/ours --deep"):
        assert run.main(["convert", *words.split()]) == 0, capsys.readouterr()


def test_compile_writes_into_a_bucket(gcs):
    (output_folder(f"{STORE}/compiled") / "toy.txt").write_text("table")
    assert gcs.buckets.objects("bucket")["compiled/toy.txt"].data == b"table"


@pytest.mark.parametrize(
    "words",
    [
        "refine ROOT/pictures/0.png --model ROOT/toy --out ROOT/made",
        "study settings --model ROOT/toy --prompts ROOT/prompts.jsonl --size 32x32 --guidance 1,2 --top-k 5 --out ROOT/made",
        "evaluate --model ROOT/toy --attention red --size 32x32 --out ROOT/made",
    ],
    ids=lambda words: words.split()[0],
)
def test_what_looks_into_a_model_writes_into_a_bucket(words, both):
    for root in (Path("disk"), place(STORE)):
        (root / "prompts.jsonl").write_text(json.dumps({"prompt": "a red circle"}) + "\n")
    both(words, alike=False)  # they say how fast they were
    assert any(name.endswith(".png") for name in both.same("made"))
