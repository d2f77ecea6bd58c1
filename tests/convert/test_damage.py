"""Damaged input raises a UserError that names the file, in every layout, and leaves nothing that looks like a checkpoint."""

import itertools
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from checkpoints import Sizes, differences, rewrite, torch_tensors, write_meta  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import convert.convert as conversion  # noqa: E402
from convert import orbax_folder, sources  # noqa: E402
from convert.convert import Target, convert, open_source  # noqa: E402
from convert.file_sums import SUMS  # noqa: E402
from lumina_jax.errors import MissingFileError, StorageError, UserError  # noqa: E402
from lumina_jax.model.patchvq import PatchVQ  # noqa: E402

# From tensorstore's threads when reading fails, and from torch when it refuses a pickle.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]
SIZES = dict(vocab=40, width=32, heads=4, kv_heads=4, mlp=96)
TOY = Path(__file__).resolve().parents[2] / "assets" / "toy"
FILES = {  # the file that the tests damage, by layout
    "single": "model.safetensors",
    "indexed": "model-00002-of-00003.safetensors",
    "bin": "pytorch_model.bin",
    "meta": "consolidated.pth",
    "shards": "consolidated.02.pth",
}
LAYOUTS = [*FILES, "ours"]
LUMINA = Target("lumina")


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """A folder with one small model in every layout."""
    root = tmp_path_factory.mktemp("intact")
    write_meta(root / "meta", Sizes(**SIZES, shards=1))
    write_meta(root / "shards", Sizes(**SIZES, shards=4))
    for name, target in (("single", Target("lumina")), ("indexed", Target("hf", 3)), ("ours", Target("ours"))):
        convert(root / "shards", root / name, target, show=False)
    (root / "bin").mkdir()
    shutil.copy(root / "single/config.json", root / "bin")
    torch.save(load_file(root / "single/model.safetensors"), root / "bin/pytorch_model.bin")
    return root


@pytest.fixture
def copy(intact, tmp_path):
    """A function that copies the model in one layout, to be damaged."""

    def make(layout: str) -> Path:
        return Path(shutil.copytree(intact / layout, tmp_path / "damaged"))

    return make


def assert_refused(folder: Path, *words: str, target: Target = LUMINA, error: type[UserError] = UserError) -> None:
    """Converting ``folder`` raises ``error`` with all of ``words`` in its message, and leaves nothing behind."""
    destination = folder.parent / "output" / "target"
    with pytest.raises(error) as caught:
        convert(folder, destination, target, show=False)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not destination.parent.exists() or not any(destination.parent.iterdir())


def load(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    (file.parent / SUMS).unlink(missing_ok=True)  # of what was exported there
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)


def a_matrix(tensors: dict[str, torch.Tensor]) -> str:
    """The name of a matrix that every file has, and that is not square."""
    return next(name for name in sorted(tensors) if "gate_proj" in name or "feed_forward.w1" in name)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_file(layout, keep, copy):
    folder = copy(layout)
    file = folder / FILES[layout]
    os.truncate(file, int(file.stat().st_size * keep))
    assert_refused(folder, str(file), "damaged or cut short", "again")


@pytest.mark.parametrize("layout", FILES)
def test_a_file_that_begins_with_garbage(layout, copy):
    folder = copy(layout)
    file = folder / FILES[layout]
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])
    assert_refused(folder, str(file), "damaged")


@pytest.mark.parametrize("layout", FILES)
def test_a_missing_file(layout, copy):
    folder = copy(layout)
    (folder / FILES[layout]).unlink()
    name = "consolidated.00.pth" if layout == "meta" else FILES[layout]  # a single file may have either name
    assert_refused(folder, str(folder), name, error=MissingFileError)


@pytest.mark.smoke
@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("damage", ["missing", "unknown", "transposed", "int8"])
def test_weights_that_do_not_fit_the_config(layout, damage, copy):
    folder = copy(layout)
    file = folder / FILES[layout]
    tensors = load(file)
    name = a_matrix(tensors)
    words = [name, FILES[layout]]
    if damage == "missing":
        del tensors[name]
        words = [name] if layout in ("single", "bin") else words
    elif damage == "unknown":
        tensors["model.nonsense.weight"] = torch.zeros(3)
        words = ["unknown", "model.nonsense.weight", FILES[layout]]
    elif damage == "transposed":
        tensors[name] = tensors[name].T.contiguous()
        words += [str(list(tensors[name].shape)), str(list(tensors[name].T.shape))]
    else:
        tensors[name] = tensors[name].to(torch.int8)
        words += ["int8", "bfloat16"]
    save(tensors, file)
    assert_refused(folder, *words)
    if damage == "int8":
        assert_refused(folder, *words, target=Target("lumina", dtype="bfloat16"))


@pytest.mark.parametrize("layout", FILES)
def test_several_dtypes_need_the_dtype_option(layout, copy, intact):
    folder = copy(layout)
    tensors = load(folder / FILES[layout])
    name = a_matrix(tensors)
    tensors[name] = tensors[name].float()
    save(tensors, folder / FILES[layout])
    assert_refused(folder, "--dtype", "bfloat16", "float32", name, FILES[layout])
    source_layout = {"indexed": "hf", "meta": "meta", "shards": "meta"}.get(layout, "lumina")
    back = folder.parent / "back"
    convert(folder, back, Target(source_layout, dtype="bfloat16"), show=False)
    if source_layout == "meta":
        (back,) = (back / "models").iterdir()
    assert not differences(torch_tensors(back), torch_tensors(intact / layout))


@pytest.mark.parametrize("layout", ["bin", "meta", "shards"])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code(layout, archive, copy, tmp_path):
    folder, trace = copy(layout), tmp_path / "executed"
    tensors = load(folder / FILES[layout])

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    torch.save(tensors | {"more": Code()}, folder / FILES[layout], _use_new_zipfile_serialization=archive)
    assert_refused(folder, str(folder / FILES[layout]), "refused", "mkdir", "can run code", "safetensors")
    (folder / FILES[layout]).write_bytes(pickle.dumps(Code()))
    assert_refused(folder, str(folder / FILES[layout]), "refused", "can run code")
    assert not trace.exists()


@pytest.mark.parametrize("layout", ["bin", "meta", "shards"])
@pytest.mark.parametrize("content", [{"step": 3}, {3: torch.ones(2)}, [torch.ones(2)]], ids=["number", "key", "list"])
def test_a_torch_file_that_holds_no_state_dict(layout, content, copy):
    folder = copy(layout)
    torch.save(content, folder / FILES[layout])
    assert_refused(folder, str(folder / FILES[layout]), "state dict")


def test_older_torch_files_and_trainer_checkpoints_are_read(copy):
    """As torch wrote them before 1.6, and with the weights under "state_dict"."""
    folder = copy("bin")
    tensors = load(folder / FILES["bin"])
    for number, content in enumerate((tensors, {"state_dict": tensors, "epoch": 3})):
        torch.save(content, folder / FILES["bin"], _use_new_zipfile_serialization=False)
        convert(folder, folder.parent / str(number), Target("lumina"), show=False)
        assert not differences(torch_tensors(folder.parent / str(number)), tensors)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda index: index["weight_map"].update({"lm_head.weight": "gone.safetensors"}), "gone.safetensors"),
        (
            lambda index: index["weight_map"].update({"lm_head.weight": FILES["indexed"]}),
            f"lm_head.weight ({FILES['indexed']}",
        ),
        (lambda index: index["weight_map"].update({"lm_head.weight": "../single/model.safetensors"}), "weight_map"),
        (lambda index: index["weight_map"].update({"lm_head.weight": 3}), "weight_map"),
        (lambda index: index.update(weight_map=[]), "weight_map"),
        (lambda index: index.pop("weight_map"), "weight_map"),
    ],
)
def test_a_wrong_index(change, word, copy):
    folder = copy("indexed")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    assert_refused(folder, str(folder), word)


JSON_FILES = {"config.json": "single", "params.json": "shards", "consolidate_params.json": "shards"}


@pytest.mark.parametrize(("name", "layout"), JSON_FILES.items())
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00"], ids=["cut", "list", "binary"])
def test_a_settings_file_that_is_no_json_object(name, layout, content, copy):
    folder = copy(layout)
    (folder / name).write_bytes(content)
    assert_refused(folder, str(folder / name))


@pytest.mark.parametrize(
    ("layout", "change", "word"),
    [
        ("single", {"num_hidden_layers": None}, "num_hidden_layers"),
        ("single", {"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ("single", {"num_hidden_layers": 3}, "model.layers.2."),
        ("single", {"num_hidden_layers": 1}, "model.layers.1."),
        ("single", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("single", {"model_parallel_size": 3}, "qk_groups=3"),
        ("single", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("single", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type"),
        ("single", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ("single", {"swin_norm": "yes"}, "swin_norm is 'yes'"),
        ("single", {"rope_parameters": [1]}, "rope_parameters is [1]"),
        ("shards", {"model": {}}, "'dim'"),
        ("shards", {"model": None}, "'dim'"),
        ("shards", {"model": 3}, "model is 3"),
        ("shards", {"dim": 32.5}, "dim is 32.5"),
        ("shards", {"multiple_of": 64}, "feed_forward.w1"),
        ("shards", {"qk_normalization": False}, "qk_normalization"),
    ],
)
def test_settings_that_cannot_be_right(layout, change, word, copy):
    folder = copy(layout)
    file = folder / {"single": "config.json", "shards": "params.json"}[layout]
    settings = json.loads(file.read_text())
    inner = settings if layout == "single" or "model" in change else settings["model"]
    inner |= change
    file.write_text(json.dumps(settings))
    assert_refused(folder, str(folder), word)


@pytest.mark.parametrize(
    ("size", "word"), [(1, "too many"), (2, "too many"), (8, "heads=4"), ("4", "'4'"), (0, "is 0")]
)
def test_a_wrong_number_of_meta_files(size, word, copy):
    folder = copy("shards")
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": size}))
    assert_refused(folder, str(folder), word)


@pytest.mark.parametrize("shape", [(3, 8), (4, 7), (32,)])
def test_qk_norms_with_an_impossible_shape(shape, copy):
    folder = copy("single")
    rewrite(folder, lambda tensors: tensors.update({"model.layers.1.self_attn.k_norm.bias": torch.ones(shape)}))
    assert_refused(
        folder, str(folder / "model.safetensors"), "model.layers.1.self_attn.k_norm.bias", str(list(shape)), "4 heads"
    )


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_replicated_norms_that_differ(factor, copy):
    folder = copy("shards")
    tensors = load(folder / "consolidated.02.pth")
    save(tensors | {"norm.weight": tensors["norm.weight"] * factor}, folder / "consolidated.02.pth")
    assert_refused(folder, str(folder), "norm.weight", "4 files")


def test_replicated_norms_that_nearly_agree_are_averaged(copy):
    folder = copy("shards")
    norms = []
    for shard in range(4):
        tensors = load(folder / f"consolidated.{shard:02d}.pth")
        # One unit in the last place in half of the numbers.
        raw = tensors["norm.weight"].view(torch.int16)
        tensors["norm.weight"] = torch.where(torch.arange(32) % 4 < shard, raw + 1, raw).view(torch.bfloat16)
        norms.append(tensors["norm.weight"].float())
        save(tensors, folder / f"consolidated.{shard:02d}.pth")
    convert(folder, folder.parent / "back", Target("lumina"), show=False)
    averaged = load(folder.parent / "back/model.safetensors")["model.norm.weight"]
    assert torch.equal(averaged, torch.stack(norms).mean(0).bfloat16())


CHECKPOINT = "checkpoints/0"


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff" * 40, b"[]", b"{}"], ids=["gone", "empty", "garbage", "list", "object"]
)
def test_an_orbax_checkpoint_with_damaged_metadata(name, content, copy):
    folder = copy("ours")
    file = folder / CHECKPOINT / name
    file.unlink() if content is None else file.write_bytes(content)
    assert_refused(folder, str(folder / CHECKPOINT), "damaged")


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_an_orbax_checkpoint_with_a_truncated_file(keep, copy):
    folder = copy("ours")
    file = max((folder / CHECKPOINT).rglob("d/*"), key=lambda file: file.stat().st_size)
    os.truncate(file, int(file.stat().st_size * keep))
    assert_refused(folder, str(folder / CHECKPOINT), "model/", "damaged or cut short")
    assert_refused(folder, str(folder / CHECKPOINT), "model/", "damaged or cut short", target=Target("ours"))


def test_an_orbax_checkpoint_of_another_model(copy):
    folder = copy("ours")
    file = folder / CHECKPOINT / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"layers": 2', '"layers": 3'))
    assert_refused(folder, str(folder / CHECKPOINT), "what it says of itself was changed")


def test_an_orbax_checkpoint_that_was_never_finished(copy):
    folder = copy("ours")
    (folder / CHECKPOINT / "commit_success.txt").unlink()
    assert_refused(folder, str(folder), "finished", error=MissingFileError)


def test_a_tokenizer_of_another_model(copy):
    folder = copy("single")
    shutil.copy(TOY / "tokenizer.json", folder)
    assert_refused(folder, str(folder / "tokenizer.json"), "model.vocab=40", "1536")
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(folder, str(folder / "tokenizer.json"))


def test_an_image_tokenizer_of_another_model(tmp_path):
    folder = Path(shutil.copytree(TOY, tmp_path / "damaged"))
    PatchVQ(PatchVQ.load(folder / "vq.npz").codebook[:256]).save(folder / "vq.npz")
    assert_refused(folder, str(folder / "vq.npz"), "256 codes", "1150 image tokens")
    content = bytearray((TOY / "vq.npz").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 99] = b"\xff" * 99
    (folder / "vq.npz").write_bytes(content)
    assert_refused(folder, str(folder / "vq.npz"), "damaged")
    (folder / "vq.npz").write_bytes(b"\xff")
    assert_refused(folder, str(folder / "vq.npz"))


@pytest.mark.parametrize("option", ["tokenizer", "vq"])
def test_a_tokenizer_file_that_is_given_but_absent(option, copy):
    assert_refused(copy("single"), "/nowhere", target=Target("lumina", **{option: "/nowhere"}), error=MissingFileError)


@pytest.mark.parametrize("layout", ["lumina", "meta", "ours"])
def test_too_little_space_is_noticed_before_anything_is_written(layout, copy, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda folder: free)
    assert_refused(copy("shards"), "output", "free", target=Target(layout), error=StorageError)


@pytest.mark.smoke
@pytest.mark.parametrize(("layout", "limit"), [("lumina", 300), ("lumina", 20_000), ("meta", 20_000), ("ours", 20_000)])
def test_a_disk_that_fills_up_while_writing(layout, limit, copy):
    """A limit of ``limit`` bytes per file, which every library reports as it reports a full disk."""
    folder = copy("shards")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert_refused(folder, "target.unfinished", "cannot be written", target=Target(layout), error=StorageError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    convert(folder, folder.parent / "output" / "target", Target(layout), show=False)


@pytest.mark.parametrize("layout", ["lumina", "meta", "ours"])
def test_existing_files_are_not_overwritten(layout, intact, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").write_text("x")
    with pytest.raises(FileExistsError, match=str(target)):
        convert(intact / "meta", target, Target(layout), show=False)
    assert [file.name for file in tmp_path.rglob("*")] == ["target", "kept"]


@pytest.mark.parametrize("layout", ["hf", "meta", "ours"])
@pytest.mark.parametrize("reads", [20, 1000], ids=["while reading", "at the last step"])
def test_an_interrupted_write_is_no_checkpoint(layout, reads, intact, tmp_path, monkeypatch):
    """Its folder is left as a killed process leaves it; the next run starts from the beginning."""
    target, unfinished = tmp_path / "target", tmp_path / "target.unfinished"
    reads_left = itertools.count(reads, -1)
    read = sources.MetaSource.read

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as change:
        change.setattr(
            sources.MetaSource, "read", lambda *arguments: read(*arguments) if next(reads_left) else killed()
        )
        change.setattr(orbax_folder, "BATCH_BYTES", 10_000)
        change.setattr(conversion.tokenizer_files, "copy", killed)
        change.setattr(conversion.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            convert(intact / "shards", target, Target(layout, 4 if layout == "meta" else None), show=False)
    assert not target.exists()
    (unfinished / "junk").write_text("x")
    with pytest.raises(ValueError, match=r"target\.unfinished is what an interrupted"):
        open_source(unfinished)
    convert(intact / "shards", target, Target(layout), show=False)
    assert not unfinished.exists() and not list(target.rglob("junk"))
    open_source(target)
