"""Prompts, pictures, dialogs and answers on a store are those of a disk."""

import json

import fsspec
import numpy as np
import pytest
from PIL import Image
from tiny import CODES, tiny_vocab

from lumina_jax.cli.results import claimed, results_folder
from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.errors import ExistingFileError, InputError, MissingFileError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.places import place
from lumina_jax.sample import job as room
from lumina_jax.sample.dialog import Dialog
from lumina_jax.sample.files import open_image, pictures_in, read_lines
from lumina_jax.sample.job import Answer, Job, check_free, finished
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sample.transcript import TRANSCRIPT, Transcript
from lumina_jax.vocab import Vocab

VQ = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig(image_top_k=12, text_top_k=10, max_new_tokens=40)
BUILDER = PromptBuilder(VQ, tiny_vocab(), DataConfig(size=64, patch=32))


@pytest.fixture
def memory(tmp_path):
    """A store in the memory of this process that holds a picture."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (place("memory://bucket") / "red.png").write_bytes((tmp_path / "red.png").read_bytes())
    yield place("memory://bucket")
    system.store.clear()


def test_pictures_come_from_stores_also_beside_a_file_of_prompts(memory, tmp_path):
    assert open_image(memory / "red.png").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(InputError, match=r"memory://bucket/gone\.png is not a picture .* there is no such file"):
        open_image(memory / "gone.png")
    with pytest.raises(InputError, match=r"https://example\.com/a\.png is not .* download it first"):
        open_image(place("https://example.com/a.png"))
    message, (file,) = pictures_in("@memory://bucket/red.png, what is it?")
    assert file == memory / "red.png" and message.endswith(", what is it?")
    (memory / "p.jsonl").write_text(json.dumps({"task": "depth", "image": "red.png"}) + "\n")
    (line,) = read_lines(memory / "p.jsonl")
    near = BUILDER.from_record(line.record(), memory, lambda task: CFG)
    far = BUILDER.from_record({"task": "depth", "image": "memory://bucket/red.png"}, tmp_path, lambda task: CFG)
    assert (near.ids == far.ids).all()
    with pytest.raises(MissingFileError, match=r"memory://bucket/none\.txt"):
        read_lines(memory / "none.txt")


def test_a_dialog_is_kept_with_names_that_are_found_again(memory, tmp_path):
    picture = BUILDER.shown(open_image(memory / "red.png"))
    dialog = Dialog((("<|image|>w1", "w2"),), (picture,))
    transcript = Transcript(memory / "out")
    transcript.keep(dialog, [memory / "out" / "shown.png"])
    transcript.save(tmp_path / "here.jsonl")
    transcript.save(memory / "out" / "there.html")
    (line,) = read_lines(memory / "out" / TRANSCRIPT)
    assert line.record()["image"] == ["shown.png"]
    (line,) = read_lines(tmp_path / "here.jsonl")
    assert line.record()["image"] == ["memory://bucket/out/shown.png"]
    (memory / "out" / "mine.html").write_text("mine")
    with pytest.raises(ExistingFileError, match=r"memory://bucket/out/mine\.html exists"):
        transcript.save(memory / "out" / "mine.html")


@pytest.mark.parametrize("ended", [True, False])
def test_answers_are_recorded_at_intervals_and_in_the_end(ended, memory, monkeypatch):
    job = Job(tuple(BUILDER.generate(f"w{number}", (32, 32), CFG) for number in range(4)))
    answers = [Answer(number, 0, f"w{number}", (), "x", 1) for number in range(4)]
    writes, plain = [], room._write
    monkeypatch.setattr(room, "_write", lambda *words: writes.append(len(words[2])) or plain(*words))
    monkeypatch.setattr(room, "UPLOAD_SECONDS", 0.0)
    painted = room._recording(job, memory, [], iter(answers))
    taken = [next(painted) for _ in range(4 if ended else 3)]
    assert list(painted) == [] if ended else painted.close() is None
    assert finished(job, memory) == taken == answers[: len(taken)] and writes[:2] == [0, 1]


def test_folders_of_results_are_taken_once(memory):
    out = results_folder("memory://bucket/painted", "out/samples", check_free)
    second = claimed(out / "samples.jsonl")
    with claimed(out / "samples.jsonl"), pytest.raises(ExistingFileError, match="another run has begun"):
        second.__enter__()
    assert not (out / "samples.jsonl").exists()
    (out / "000-0.png").write_bytes(b"x")
    with pytest.raises(ExistingFileError, match="memory://bucket/painted holds results of an earlier run"):
        results_folder("memory://bucket/painted", "out/samples", check_free)


def test_tokenizers_of_a_store_are_those_of_the_disk(memory, tokenizer_path):
    (memory / "tokenizer" / "tokenizer.json").write_bytes((tokenizer_path / "tokenizer.json").read_bytes())
    assert Vocab.load("memory://bucket") == Vocab.load(tokenizer_path)
    VQ.save("memory://bucket/vq.npz")
    assert (PatchVQ.load("memory://bucket/vq.npz").codebook == VQ.codebook).all()
