"""Laws of pretokenizing at scale: the number of processes, stages and devices and a remote folder change no token."""

import dataclasses
import json
import os
import pickle
import threading
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from data_parts import CODES, CONFIG, SIZES, STRIDE, NoiseSource, noise, tiny_vocab, tiny_vq
from flax import nnx

from lumina_jax import open_files
from lumina_jax.config import VQConfig
from lumina_jax.data import token_files
from lumina_jax.data.encode import BatchEncoder, GridEncoder
from lumina_jax.data.pretokenize import finish, pretokenize, pretokenize_stages
from lumina_jax.data.shard_maker import PretokenizeStage
from lumina_jax.data.shards import Shards, check_made_with
from lumina_jax.data.sources import Record
from lumina_jax.layout import decode_grid, images_in
from lumina_jax.model.image_tokenizer import fingerprint
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.pictures import pixels
from lumina_jax.storage import StorageFolder, atomic_write

VOCAB, VQ, SEED, SHARD = tiny_vocab(), tiny_vq(), 5, 8
STAGES = (SIZES, [(16, 16), (32, 16)], [(32, 32)])
VQVAE_CONFIG = VQConfig(codes=CODES, embed=4, latent=4, base=32, multipliers=(1, 1, 1), res_blocks=1, resolution=16)


class TextSource(NoiseSource):
    def __getitem__(self, index: int) -> Record:
        return Record([("say", "word " * (index + 1))], [])


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return jax.jit(lambda: VQVAE(VQVAE_CONFIG, nnx.Rngs(0)))()


def run(out, source=None, **changes):
    arguments = dict(cfg=CONFIG, seed=SEED, shard_records=SHARD, batch=4, sizes=SIZES, progress=False)
    return pretokenize(NoiseSource(bad=(3, 17)) if source is None else source, VQ, VOCAB, out, **(arguments | changes))


def run_stages(out, **changes):
    stages = [PretokenizeStage(out / str(number), sizes, 400) for number, sizes in enumerate(STAGES)]
    source = changes.pop("source", None) or NoiseSource(bad=(3, 17))
    return pretokenize_stages(source, VQ, VOCAB, stages, SEED, SHARD, 4, progress=False, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


def test_processes_share_the_shards_and_the_last_writes_the_totals(complete, tmp_path):
    sources = [NoiseSource(bad=(3, 17)) for _ in range(3)]
    results = [run(tmp_path, source, shard_slice=slice(i, None, 3)) for i, source in enumerate(sources)]
    assert [source.reads for source in sources] == [18, 16, 16]
    assert results == [None, None, Shards(complete).manifest]
    assert contents(tmp_path) == contents(complete)


def test_another_number_of_processes_continues(complete, tmp_path):
    assert run(tmp_path, shard_slice=slice(0, None, 3)) is None
    sources = [NoiseSource(bad=(3, 17)) for _ in range(2)]
    results = [run(tmp_path, source, shard_slice=slice(i, None, 2)) for i, source in enumerate(sources)]
    assert sum(source.reads for source in sources) == 50 - 18
    assert results[0] is None and contents(tmp_path) == contents(complete)


def test_processes_at_the_same_time_end_in_the_same_bytes(complete, tmp_path):
    """Each shard has two writers here; with one slice of shards per process it has one."""
    results = {}

    def work(i: int) -> None:
        results[i] = run(tmp_path, shard_slice=slice(i // 2, None, 2))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(results.values()) and contents(tmp_path) == contents(complete)


def test_finishing_needs_no_source_and_names_what_is_missing(complete, tmp_path):
    run(tmp_path, shard_slice=slice(0, 5))
    with pytest.raises(ValueError, match=r"lacks 2 of its 7 shards, 5 the first"):
        finish([PretokenizeStage(tmp_path, SIZES)])
    run(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "lengths.npy").unlink()
    (tmp_path / "lengths.npy.0123abcd.tmp").touch()
    assert finish([PretokenizeStage(tmp_path, SIZES)]) == [Shards(complete).manifest]
    assert contents(tmp_path) == before


def test_reading_once_for_all_stages_equals_one_run_per_stage(tmp_path):
    together, source = tmp_path / "together", NoiseSource(bad=(3, 17))
    manifests = run_stages(together, source=source)
    assert source.reads == len(source)
    for number, sizes in enumerate(STAGES):
        manifest = run(tmp_path / str(number), sizes=sizes, max_tokens=400)
        assert manifest == manifests[number]
        assert contents(tmp_path / str(number)) == contents(together / str(number))
    assert len({manifest.tokens for manifest in manifests}) == len(STAGES)


def test_shards_of_a_stage_begun_alone_are_kept(tmp_path):
    run(tmp_path / "out" / "1", sizes=STAGES[1], max_tokens=400, shard_slice=slice(0, 2))
    before = contents(tmp_path / "out")
    run_stages(tmp_path / "out")
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    run_stages(tmp_path / "anew")
    assert after == contents(tmp_path / "anew")


def test_the_offset_of_a_crop_depends_on_seed_record_and_image_alone(tmp_path):
    pictures = [noise((90, 20), 0), noise((80, 20), 0)]

    class Wide(NoiseSource):
        def __getitem__(self, index):
            return Record([("<|image|><|image|> which?", "both")], pictures)

    run(tmp_path, Wide(3), sizes=SIZES[:1])
    for index, (tokens, _) in enumerate(Shards(tmp_path)[i] for i in range(3)):
        for number, image in enumerate(images_in(tokens, VOCAB)):
            crop = pixels.random_crop(pictures[number], SIZES[0], np.random.default_rng([SEED, index, number]))
            grid = VQ.encode(pixels.to_pixels(crop)[None])[0]
            np.testing.assert_array_equal(decode_grid(tokens[image], VOCAB), grid)


def test_two_stages_in_one_folder_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="two stages have one folder"):
        pretokenize_stages(
            NoiseSource(), VQ, VOCAB, [PretokenizeStage(tmp_path, SIZES), PretokenizeStage(tmp_path, SIZES[:1])], SEED
        )


def test_too_long_records_are_rejected_and_never_cut(tmp_path):
    manifest = run(tmp_path, TextSource(30), max_tokens=60)
    kept = Shards(tmp_path)
    lengths = [len(VOCAB.encode("say" + "word " * (index + 1))) + 3 for index in range(30)]
    assert kept.lengths.tolist() == [length for length in lengths if length <= 60]
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [reject["index"] for reject in rejects] == [i for i, length in enumerate(lengths) if length > 60]
    assert f"{lengths[-1]} tokens, and at most 60" in rejects[-1]["reason"] and manifest.rejected == len(rejects) > 10


def test_a_shard_of_mostly_rejects_is_reported(tmp_path, capsys):
    run(tmp_path, NoiseSource(16, bad=tuple(range(5))), progress=True)
    log = " ".join(capsys.readouterr().err.split())
    assert "5 of 8 records of shard 0 were rejected, the first because record 0 is bad" in log
    assert "00000-of-00002.*" in log and "shard 1 were" not in log


def test_the_manifest_counts_the_kinds_of_records(tmp_path):
    class Mixed(NoiseSource):
        def __getitem__(self, index):
            square, wide = noise((16, 16), 0), noise((24, 8), 1)
            return [
                Record([("say", "yes")], []),
                Record([], [square], caption="a square"),
                Record([("<|image|> what?", "noise")], [wide]),
                Record([("<|image|> turn it", "<|image|>")], [square, wide]),
            ][index % 4]

    manifest = run(tmp_path, Mixed(10), name="toys.jsonl")
    assert manifest.kinds == {"image to text": 2, "mixed": 2, "text": 3, "text to image": 3}
    assert manifest.crops == {"16x16": 5, "24x8": 4}
    assert manifest.shard_kept == (8, 2) and manifest.settings.name == "toys.jsonl"
    assert run(tmp_path, Mixed(10), name="moved/toys.jsonl") == manifest


def test_tokens_made_with_another_tokenizer_or_vq_model_are_an_error(complete, tmp_path):
    manifest = Shards(complete).manifest
    check_made_with(manifest, VOCAB, fingerprint(VQ))
    check_made_with(manifest, VOCAB)
    with pytest.raises(ValueError, match=rf"here was made with the VQ model {fingerprint(VQ)}, .*vq\.path"):
        check_made_with(manifest, VOCAB, fingerprint(tiny_vq(1)), "here")
    with pytest.raises(ValueError, match=r"tokenizer .*data\.tokenizer"):
        check_made_with(manifest, tiny_vocab("<other>"), fingerprint(VQ))
    text = run(tmp_path, TextSource(9))
    check_made_with(text, VOCAB, fingerprint(tiny_vq(1)))


def test_another_token_limit_is_an_error_that_names_it(complete):
    with pytest.raises(ValueError, match="max_tokens=None instead of 7"):
        run(complete, max_tokens=7)


def test_the_fingerprint_depends_on_the_weights_that_decide_codes(vqvae):
    changed = {}
    for name in ("decoder", "encoder"):
        parts = jax.tree_util.tree_map_with_path(
            lambda path, leaf, name=name: leaf + 1 if jax.tree_util.keystr(path).startswith(f".{name}") else leaf, vqvae
        )
        changed[name] = fingerprint(parts)
    assert changed["decoder"] == fingerprint(vqvae) != changed["encoder"]


@pytest.mark.parametrize("devices", [2, 8])
def test_the_number_of_devices_changes_no_code(devices, vqvae):
    """Each of three sizes has a short batch at its end, and one has fewer pictures than devices."""
    rng = np.random.default_rng(0)
    crops = [(16, 16) if i % 3 else (24, 8) for i in range(26)] + [(8, 24)]
    crops = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in crops]
    grids = []
    for count in (1, devices):
        encoder = GridEncoder(BatchEncoder.on_devices(vqvae, 3, jax.devices()[:count]))
        for number, crop in enumerate(crops):
            encoder.add(number, crop)
        encoder.flush()
        grids.append(encoder.grids())
    assert grids[0].keys() == grids[1].keys() == set(range(len(crops)))
    for number, crop in enumerate(crops):
        np.testing.assert_array_equal(grids[0][number], grids[1][number])
        assert grids[0][number].shape == (crop.shape[0] // STRIDE, crop.shape[1] // STRIDE)


def test_each_size_compiles_once(monkeypatch, vqvae):
    shapes = []
    encode = VQVAE.encode
    monkeypatch.setattr(VQVAE, "encode", lambda self, pixels: (shapes.append(pixels.shape), encode(self, pixels))[1])
    encoder = GridEncoder(BatchEncoder.on_devices(vqvae, 3, jax.devices()[:2]))
    for number in range(25):
        encoder.add(number, np.zeros((8, 24, 3) if number % 4 else (16, 16, 3), np.uint8))
    encoder.flush()
    assert len(encoder.grids()) == 25 and set(shapes) == {(6, 8, 24, 3), (6, 16, 16, 3)}


def test_a_remote_folder_has_the_same_bytes(complete, tmp_path):
    url = "memory://bucket/tokens"
    assert run(url, shard_slice=slice(0, 3)) is None
    run(url)
    store = fsspec.filesystem("memory")
    stored = {path.rpartition("/")[2]: store.cat_file(path) for path in store.ls("/bucket/tokens", detail=False)}
    assert stored == contents(complete)
    there, here = Shards(url, reading=token_files.StoreReading(str(tmp_path))), Shards(complete)
    for sample, other in zip(there.read(range(len(here))), here.read(range(len(here))), strict=True):
        np.testing.assert_array_equal(sample, other)


def test_complete_files_survive_another_process_that_tidies_up(tmp_path):
    def vanish(path: Path) -> None:
        path.write_text("mine")
        path.unlink()

    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file") as temporary:
        vanish(temporary)
    (tmp_path / "file").write_text("theirs")
    with atomic_write(tmp_path / "file") as temporary:
        vanish(temporary)
    (tmp_path / "left.0123abcd.tmp").touch()
    StorageFolder(tmp_path).remove_temporary_files()
    assert contents(tmp_path) == {"file": b"theirs"}


def test_samples_are_read_in_any_order_and_by_other_processes(complete):
    data = Shards(complete)
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 500
    for index in (0, len(data) - 1, 7, 8):
        np.testing.assert_array_equal(copy[index][0], data[index][0])
    for index in (-1, len(data)):
        with pytest.raises(IndexError, match=f"record {index} of {len(data)}"):
            data[index]


def test_a_truncated_file_is_an_error(tmp_path):
    run(tmp_path)
    name = tmp_path / "00001-of-00007.tokens"
    os.truncate(name, name.stat().st_size - 4)
    with pytest.raises(ValueError, match="damaged"):
        Shards(tmp_path)


def test_more_shards_than_open_files_is_an_error(complete, monkeypatch):
    limits = {"set": None}
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: (64, 1024))
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda _, pair: limits.update(set=pair))
    Shards(complete)
    assert limits["set"] == (7 + open_files.SPARE_FILES, 1024)
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: (64, 100))
    with pytest.raises(OSError, match=r"has 7 shards, which needs 263 open files, but 100 are allowed"):
        Shards(complete)


def test_settings_of_another_version_are_an_error(complete, tmp_path):
    settings = dataclasses.asdict(Shards(complete).manifest.settings)
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"colour": 1}))
    with pytest.raises(ValueError, match="not written by this version"):
        run(tmp_path)
