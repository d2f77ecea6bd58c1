"""Laws of pretokenize: tokens equal those of its steps run by hand, a kill changes nothing, a bad record is listed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_parts import CONFIG, SIZES, STRIDE, NoiseSource, noise, tiny_vocab, tiny_vq

from lumina_jax import conversation, layout
from lumina_jax.data import shards
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.data.sources import Record
from lumina_jax.model.image_tokenizer import ImageTokenizer, fingerprint
from lumina_jax.pictures import pixels

VOCAB, VQ, SEED, SHARD, BATCH = tiny_vocab(), tiny_vq(), 5, 16, 4
BAD = (3, 17, 49)


class Killed(BaseException):
    pass


class Fragile:
    """Calls ``call``, but raises Killed after ``after`` calls."""

    def __init__(self, call, after: int):
        self.call, self.left = call, after

    def __call__(self, *args):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.call(*args)


def run(out, source=None, vq: ImageTokenizer = VQ, **changes):
    arguments = dict(cfg=CONFIG, seed=SEED, shard_records=SHARD, batch=BATCH, sizes=SIZES, progress=False)
    return pretokenize(NoiseSource(bad=BAD) if source is None else source, vq, VOCAB, out, **(arguments | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.mark.smoke
def test_tokens_equal_those_of_the_steps_run_by_hand(complete):
    source, data, kept = NoiseSource(), Shards(complete), 0
    for index in range(len(source)):
        if index in BAD:
            continue
        record, turns, grids = source[index], source[index].turns, []
        if record.images:
            size = layout.best_crop(record.images[0].size, SIZES)
            crop = pixels.random_crop(record.images[0], size, np.random.default_rng([SEED, index, 0]))
            grids = list(VQ.encode(pixels.to_pixels(crop)[None]))
            turns = [(conversation.image_prompt(*size, record.caption), "<|image|>")]
        tokens, learn = conversation.tokenize(turns, grids, VOCAB)
        np.testing.assert_array_equal(data[kept][0], tokens)
        np.testing.assert_array_equal(data[kept][1], learn)
        assert data.lengths[kept] == len(tokens)
        kept += 1
    assert len(data) == kept


def test_the_manifest_counts_records_and_tokens(complete):
    data = Shards(complete)
    manifest, samples = data.manifest, [data[i] for i in range(len(data))]
    assert (manifest.kept, manifest.rejected) == (50 - len(BAD), len(BAD))
    assert manifest.tokens == sum(len(tokens) for tokens, _ in samples) == data.lengths.sum()
    assert manifest.learned == sum(int(learn.sum()) for _, learn in samples)
    assert sum(manifest.histogram) == manifest.kept and len(manifest.edges) == len(manifest.histogram) + 1
    assert manifest.settings.tokenizer == VOCAB.fingerprint and manifest.settings.seed == SEED


def test_packing_is_lossless():
    tokens, learn = np.array([0, 0, 65535, 65535, 7], np.int32), np.array([True, False, True, False, True])
    for array, back in zip((tokens, learn), shards.unpack(shards.pack(tokens, learn)), strict=True):
        np.testing.assert_array_equal(array, back)
    assert np.frombuffer(shards.pack(tokens, learn), "<i4").tolist() == [0, -1, 65535, -65536, 7]


@pytest.mark.parametrize("what", ["read", "encode", "rename"])
def test_a_run_that_dies_anywhere_continues_to_the_same_bytes(complete, tmp_path, monkeypatch, what):
    """Each run dies a few calls later than the one before, and the next continues its folder."""
    renames, died, after = os.replace, 0, 0
    while True:
        after += {"read": 9, "encode": 3, "rename": 1}[what]
        source, vq = NoiseSource(bad=BAD), tiny_vq()
        with monkeypatch.context() as patch:
            if what == "read":
                patch.setattr(NoiseSource, "__getitem__", Fragile(source.__getitem__, after))
            elif what == "encode":
                patch.setattr(vq, "encode", Fragile(vq.encode, after))
            else:
                patch.setattr(os, "replace", Fragile(renames, after))
            try:
                run(tmp_path, source, vq)
                break
            except Killed:
                died += 1
                with pytest.raises(FileNotFoundError, match="unfinished"):
                    Shards(tmp_path)
    assert died >= 2
    assert contents(tmp_path) == contents(complete)


def test_a_real_kill_changes_nothing_and_costs_one_shard(complete, tmp_path):
    """A child process is killed while it reads record 40, in the third of four shards."""
    out = tmp_path / "out"
    script = f"""
import time
from test_pretokenize import NoiseSource, run
class Stuck(NoiseSource):
    def __getitem__(self, index):
        if index == 40:
            time.sleep(600)
        return super().__getitem__(index)
run({str(out)!r}, Stuck(bad={BAD}))
"""
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder.parents[1])])}
    child = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        while not (out / "00001-of-00004.tokens").exists():
            assert child.poll() is None, "the child ended before it could be killed"
            time.sleep(0.02)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    source = NoiseSource(bad=BAD)
    run(out, source)
    assert source.reads == 50 - 2 * SHARD
    assert contents(out) == contents(complete)


@pytest.mark.parametrize("threads", [0, 4])
def test_the_number_of_threads_changes_no_byte(complete, tmp_path, threads):
    run(tmp_path, cfg=dataclasses.replace(CONFIG, threads=threads))
    assert contents(tmp_path) == contents(complete)


def test_bad_records_are_listed_with_their_reasons(complete):
    rejects = [json.loads(line) for line in (complete / "rejects.jsonl").read_text().splitlines()]
    cause = "OSError: record N is bad"
    assert rejects == [{"index": index, "reason": f"record {index} is bad", "cause": cause} for index in BAD]
    assert Shards(complete).manifest.causes == (shards.RejectCause(cause, len(BAD), BAD[0], f"record {BAD[0]} is bad"),)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record([("a question", None)], []), "nothing in the record is learned"),
        (Record([("<|image|>", "yes")], []), "1 <|image|>, but 0 images"),
        (Record([("x", "<|image|>")], [noise((9, 9), 0), noise((9, 9), 1)]), "1 <|image|>, but 2 images"),
        (Record([("one", None), ("two", "yes")], []), "has no answer"),
    ],
)
def test_a_record_without_a_sample_is_listed_with_its_reason(tmp_path, record, reason):
    class OneOther(NoiseSource):
        def __getitem__(self, index):
            return record if index == 1 else super().__getitem__(index)

    manifest = run(tmp_path, OneOther(4))
    assert (manifest.kept, manifest.rejected) == (3, 1)
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert reject["index"] == 1 and reason in reject["reason"]


def test_a_bug_in_a_source_stops_the_run(tmp_path):
    class Buggy(NoiseSource):
        def __getitem__(self, index):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        run(tmp_path, Buggy())


def test_a_finished_folder_is_not_touched(complete, capsys):
    before, source = contents(complete), NoiseSource(bad=BAD)
    manifest = run(complete, source, progress=True)
    assert source.reads == 0 and contents(complete) == before and manifest == Shards(complete).manifest
    assert "finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "seed=5 instead of 6"),
        ({"sizes": SIZES[:1]}, "crops="),
        ({"source": NoiseSource(49)}, "records=50 instead of 49"),
        ({"vq": tiny_vq(1)}, "vq="),
        ({"shard_records": 8}, "shard_records=16 instead of 8"),
    ],
)
def test_another_setting_is_an_error_that_names_it(complete, changes, named):
    with pytest.raises(ValueError, match=f"{named}.*delete"):
        run(complete, **changes)


def test_images_of_one_size_are_encoded_together(tmp_path):
    shapes = []

    class Watched(type(VQ)):
        def encode(self, pixels):
            shapes.append(pixels.shape)
            return super().encode(pixels)

    run(tmp_path, NoiseSource(64), Watched(VQ.codebook), shard_records=64)
    assert {shape[1:3] for shape in shapes} == {(height, width) for width, height in SIZES}
    assert {shape[0] for shape in shapes} <= {1, 2, BATCH}
    assert sum(shape[0] == BATCH for shape in shapes) >= len(shapes) - 2 * len(SIZES)


def test_arguments_that_do_not_fit_together_fail_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=rf"an edge of 12 px.*multiple of {2 * STRIDE}"):
        run(tmp_path, sizes=[(12, 16)])
    with pytest.raises(ValueError, match=r"reserved08809.*smaller data.size"):
        run(tmp_path, sizes=[(72, 16)])
    with pytest.raises(ValueError, match="32 codes, but tiny has tokens for 16"):
        run(tmp_path, vq=type(VQ)(np.concatenate([VQ.codebook, 255 - VQ.codebook])))
    with pytest.raises(ValueError, match="no records"):
        run(tmp_path, NoiseSource(0))
    assert not list(tmp_path.iterdir())


def test_fingerprints_of_image_tokenizers_differ():
    assert fingerprint(tiny_vq(0)) == fingerprint(tiny_vq(0)) != fingerprint(tiny_vq(1))


def test_the_default_crops_are_those_of_the_config(tmp_path):
    settings = run(tmp_path, sizes=None).settings
    assert settings.crops == tuple(f"{w}x{h}" for w, h in layout.crop_sizes(CONFIG.size, CONFIG.patch))


def test_reading_an_incomplete_folder_is_an_error(complete, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder written by `run.py pretokenize`"):
        Shards(tmp_path)
    run(tmp_path, NoiseSource(3, bad=(0, 1, 2)))
    with pytest.raises(ValueError, match="holds no records"):
        Shards(tmp_path)


@pytest.mark.parametrize("name", ["00002-of-00004.tokens", "lengths.npy"])
def test_reading_a_folder_without_one_of_its_files_is_an_error(tmp_path, name):
    run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Shards(tmp_path)
