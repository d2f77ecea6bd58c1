"""What is damaged is named, whatever the layout, and nothing is left behind that could be taken for a checkpoint."""

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
from convert.convert import Wish, convert, open_source  # noqa: E402
from lumina_jax.model.patchvq import PatchVQ  # noqa: E402

# Of tensorstore's threads when reading fails, and of torch when it refuses.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]
SIZES = dict(vocab=40, width=32, heads=4, kv_heads=4, mlp=96)
TOY = Path(__file__).resolve().parents[2] / "assets" / "toy"
FILES = {  # the file that is damaged, by layout
    "single": "model.safetensors",
    "indexed": "model-00002-of-00003.safetensors",
    "bin": "pytorch_model.bin",
    "meta": "consolidated.pth",
    "shards": "consolidated.02.pth",
}
LAYOUTS = [*FILES, "ours"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with one small model in every layout."""
    root = tmp_path_factory.mktemp("whole")
    write_meta(root / "meta", Sizes(**SIZES, shards=1))
    write_meta(root / "shards", Sizes(**SIZES, shards=4))
    for name, wish in (("single", Wish("lumina")), ("indexed", Wish("hf", 3)), ("ours", Wish("ours"))):
        convert(root / "shards", root / name, wish, show=False)
    (root / "bin").mkdir()
    shutil.copy(root / "single/config.json", root / "bin")
    torch.save(load_file(root / "single/model.safetensors"), root / "bin/pytorch_model.bin")
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """Makes a copy of a layout, to be damaged."""

    def make(layout: str) -> Path:
        return Path(shutil.copytree(whole / layout, tmp_path / "damaged"))

    return make


def refused(folder: Path, *said: str, wish: Wish | None = None, of=(ValueError, OSError)) -> str:
    """Converting ``folder`` fails with a message that says all of ``said``, and leaves nothing behind."""
    target = folder.parent / "places" / "target"
    with pytest.raises(of) as caught:
        convert(folder, target, wish or Wish("lumina"), show=False)
    message = str(caught.value)
    assert all(word in message for word in said), message
    assert not target.parent.exists() or not any(target.parent.iterdir())
    return message


def load(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
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
    refused(folder, str(file), "damaged or cut short", "again")


@pytest.mark.parametrize("layout", FILES)
def test_a_file_that_begins_with_garbage(layout, copy):
    folder = copy(layout)
    file = folder / FILES[layout]
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])
    refused(folder, str(file), "damaged")


@pytest.mark.parametrize("layout", FILES)
def test_a_missing_file(layout, copy):
    folder = copy(layout)
    (folder / FILES[layout]).unlink()
    named = "consolidated.00.pth" if layout == "meta" else FILES[layout]  # one file may have either name
    refused(folder, str(folder), named, of=FileNotFoundError)


@pytest.mark.smoke
@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("damage", ["missing", "unknown", "transposed", "int8"])
def test_weights_that_do_not_fit_the_config(layout, damage, copy):
    folder = copy(layout)
    file = folder / FILES[layout]
    tensors = load(file)
    name = a_matrix(tensors)
    said = [name, FILES[layout]]
    if damage == "missing":
        del tensors[name]
        said = [name] if layout in ("single", "bin") else said
    elif damage == "unknown":
        tensors["model.nonsense.weight"] = torch.zeros(3)
        said = ["unknown", "model.nonsense.weight", FILES[layout]]
    elif damage == "transposed":
        tensors[name] = tensors[name].T.contiguous()
        said += [str(list(tensors[name].shape)), str(list(tensors[name].T.shape))]
    else:
        tensors[name] = tensors[name].to(torch.int8)
        said += ["int8", "bfloat16"]
    save(tensors, file)
    refused(folder, *said)
    if damage == "int8":
        refused(folder, *said, wish=Wish("lumina", dtype="bfloat16"))


@pytest.mark.parametrize("layout", FILES)
def test_several_dtypes_need_a_word_of_the_user(layout, copy, whole):
    folder = copy(layout)
    tensors = load(folder / FILES[layout])
    name = a_matrix(tensors)
    tensors[name] = tensors[name].float()
    save(tensors, folder / FILES[layout])
    refused(folder, "--dtype", "bfloat16", "float32", name, FILES[layout])
    own = {"indexed": Wish("hf"), "meta": Wish("meta"), "shards": Wish("meta")}.get(layout, Wish("lumina"))
    convert(folder, folder.parent / "back", Wish(own.layout, dtype="bfloat16"), show=False)
    (back,) = (folder.parent / "back" / "models").iterdir() if own.layout == "meta" else (folder.parent / "back",)
    assert not differences(torch_tensors(back), torch_tensors(whole / layout))


@pytest.mark.parametrize("layout", ["bin", "meta", "shards"])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code(layout, archive, copy, tmp_path):
    folder, trace = copy(layout), tmp_path / "executed"
    tensors = load(folder / FILES[layout])

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    torch.save(tensors | {"more": Code()}, folder / FILES[layout], _use_new_zipfile_serialization=archive)
    refused(folder, str(folder / FILES[layout]), "refused", "mkdir", "can run code", "safetensors")
    (folder / FILES[layout]).write_bytes(pickle.dumps(Code()))
    refused(folder, str(folder / FILES[layout]), "refused", "can run code")
    assert not trace.exists()


@pytest.mark.parametrize("layout", ["bin", "meta", "shards"])
@pytest.mark.parametrize("content", [{"step": 3}, {3: torch.ones(2)}, [torch.ones(2)]], ids=["number", "key", "list"])
def test_a_torch_file_of_something_else(layout, content, copy):
    folder = copy(layout)
    torch.save(content, folder / FILES[layout])
    refused(folder, str(folder / FILES[layout]), "state dict")


def test_torch_files_of_other_shapes_are_read(whole, copy):
    """As torch wrote them before 1.6, and as a trainer's checkpoint with the weights under "state_dict"."""
    folder = copy("bin")
    tensors = load(folder / FILES["bin"])
    for number, content in enumerate((tensors, {"state_dict": tensors, "epoch": 3})):
        torch.save(content, folder / FILES["bin"], _use_new_zipfile_serialization=False)
        convert(folder, folder.parent / str(number), Wish("lumina"), show=False)
        assert not differences(torch_tensors(folder.parent / str(number)), tensors)


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_a_wrong_index(change, said, copy):
    folder = copy("indexed")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    refused(folder, str(folder), said)


JSON_FILES = {"config.json": "single", "params.json": "shards", "consolidate_params.json": "shards"}


@pytest.mark.parametrize(("name", "layout"), JSON_FILES.items())
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00"], ids=["cut", "list", "binary"])
def test_a_settings_file_that_is_none(name, layout, content, copy):
    folder = copy(layout)
    (folder / name).write_bytes(content)
    refused(folder, str(folder / name))


@pytest.mark.parametrize(
    ("layout", "change", "said"),
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
        ("shards", {"model": {}}, "'dim'"),
        ("shards", {"model": None}, "'dim'"),
        ("shards", {"dim": 32.5}, "dim is 32.5"),
        ("shards", {"multiple_of": 64}, "feed_forward.w1"),
        ("shards", {"qk_normalization": False}, "qk_normalization"),
    ],
)
def test_settings_that_cannot_be_right(layout, change, said, copy):
    folder = copy(layout)
    file = folder / {"single": "config.json", "shards": "params.json"}[layout]
    settings = json.loads(file.read_text())
    inner = settings if layout == "single" or "model" in change else settings["model"]
    inner |= change
    file.write_text(json.dumps(settings))
    refused(folder, str(folder), said)


@pytest.mark.parametrize(
    ("size", "said"), [(1, "too many"), (2, "too many"), (8, "heads=4"), ("4", "'4'"), (0, "is 0")]
)
def test_a_number_of_meta_files_that_is_wrong(size, said, copy):
    folder = copy("shards")
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": size}))
    refused(folder, str(folder), said)


@pytest.mark.parametrize("shape", [(3, 8), (4, 7), (32,)])
def test_qk_norm_of_impossible_rows(shape, copy):
    folder = copy("single")
    rewrite(folder, lambda tensors: tensors.update({"model.layers.1.self_attn.k_norm.bias": torch.ones(shape)}))
    refused(
        folder, str(folder / "model.safetensors"), "model.layers.1.self_attn.k_norm.bias", str(list(shape)), "4 heads"
    )


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_replicated_norms_that_differ(factor, copy):
    folder = copy("shards")
    tensors = load(folder / "consolidated.02.pth")
    save(tensors | {"norm.weight": tensors["norm.weight"] * factor}, folder / "consolidated.02.pth")
    refused(folder, str(folder), "norm.weight", "4 files")


def test_replicated_norms_that_nearly_agree_are_averaged(copy):
    folder = copy("shards")
    norms = []
    for shard in range(4):
        tensors = load(folder / f"consolidated.{shard:02d}.pth")
        # A unit in the last place of half of the numbers.
        raw = tensors["norm.weight"].view(torch.int16)
        tensors["norm.weight"] = torch.where(torch.arange(32) % 4 < shard, raw + 1, raw).view(torch.bfloat16)
        norms.append(tensors["norm.weight"].float())
        save(tensors, folder / f"consolidated.{shard:02d}.pth")
    convert(folder, folder.parent / "back", Wish("lumina"), show=False)
    found = load(folder.parent / "back/model.safetensors")["model.norm.weight"]
    assert torch.equal(found, torch.stack(norms).mean(0).bfloat16())


CHECKPOINT = "checkpoints/0"


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt"])
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40], ids=["gone", "empty", "garbage"])
def test_our_own_checkpoint_without_its_metadata(name, content, copy):
    folder = copy("ours")
    file = folder / CHECKPOINT / name
    file.unlink() if content is None else file.write_bytes(content)
    refused(folder, str(folder / CHECKPOINT), "damaged")


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_our_own_checkpoint_with_a_truncated_file(keep, copy):
    folder = copy("ours")
    file = max((folder / CHECKPOINT).rglob("d/*"), key=lambda file: file.stat().st_size)
    os.truncate(file, int(file.stat().st_size * keep))
    refused(folder, str(folder / CHECKPOINT), "model/", "damaged or cut short")
    refused(folder, str(folder / CHECKPOINT), "model/", "damaged or cut short", wish=Wish("ours"))


def test_our_own_checkpoint_of_another_model(copy):
    folder = copy("ours")
    file = folder / CHECKPOINT / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"layers": 2', '"layers": 3'))
    refused(folder, str(folder / CHECKPOINT), "model/blocks/attention/wq [2, 32, 4, 8]")


def test_our_own_checkpoint_that_was_never_finished(copy):
    folder = copy("ours")
    (folder / CHECKPOINT / "commit_success.txt").unlink()
    refused(folder, str(folder), "finished", of=FileNotFoundError)


def test_a_tokenizer_that_is_not_the_models(copy):
    folder = copy("single")
    shutil.copy(TOY / "tokenizer.json", folder)
    refused(folder, str(folder / "tokenizer.json"), "model.vocab=40", "1536")
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, str(folder / "tokenizer.json"))


def test_an_image_tokenizer_that_is_not_the_models(tmp_path):
    folder = Path(shutil.copytree(TOY, tmp_path / "damaged"))
    PatchVQ(PatchVQ.load(folder / "vq.npz").codebook[:256]).save(folder / "vq.npz")
    refused(folder, str(folder / "vq.npz"), "256 codes", "1150 image tokens")
    (folder / "vq.npz").write_bytes(b"\xff")
    refused(folder, str(folder / "vq.npz"))


@pytest.mark.parametrize("option", ["tokenizer", "vq"])
def test_a_companion_that_is_named_but_not_there(option, copy):
    refused(copy("single"), "/nowhere", wish=Wish("lumina", **{option: "/nowhere"}), of=FileNotFoundError)


@pytest.mark.parametrize("layout", ["lumina", "meta", "ours"])
def test_too_little_space_is_seen_before_anything_is_written(layout, copy, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda folder: free)
    refused(copy("shards"), "places", "free", wish=Wish(layout), of=OSError)


@pytest.mark.smoke
@pytest.mark.parametrize(("layout", "limit"), [("lumina", 300), ("lumina", 20_000), ("meta", 20_000), ("ours", 20_000)])
def test_a_disk_that_fills_up_while_writing(layout, limit, copy):
    """Files are not allowed to grow beyond ``limit`` bytes, which every library meets as it meets a full disk."""
    folder = copy("shards")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        refused(folder, "target.unfinished", "cannot be written", wish=Wish(layout), of=OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    convert(folder, folder.parent / "places" / "target", Wish(layout), show=False)


@pytest.mark.parametrize("layout", ["lumina", "meta", "ours"])
def test_what_stands_there_is_not_overwritten(layout, whole, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(FileExistsError, match=str(target)):
        convert(whole / "meta", target, Wish(layout), show=False)
    assert [file.name for file in tmp_path.rglob("*")] == ["target", "mine"]


@pytest.mark.parametrize("layout", ["hf", "meta", "ours"])
@pytest.mark.parametrize("reads", [20, 1000], ids=["on the way", "at the last step"])
def test_an_interrupted_write_is_not_taken_for_whole(layout, reads, whole, tmp_path, monkeypatch):
    """Left as a killed process leaves it; the next run starts afresh."""
    target, unfinished = tmp_path / "target", tmp_path / "target.unfinished"
    left = itertools.count(reads, -1)
    read = sources.Meta.read

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as change:
        change.setattr(sources.Meta, "read", lambda *at: read(*at) if next(left) else killed())
        change.setattr(orbax_folder, "BATCH_BYTES", 10_000)
        change.setattr(conversion.tokenizer_files, "copy", killed)
        change.setattr(conversion.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            convert(whole / "shards", target, Wish(layout, 4 if layout == "meta" else None), show=False)
    assert not target.exists()
    (unfinished / "junk").write_text("x")
    with pytest.raises(ValueError, match=r"target\.unfinished is what an interrupted"):
        open_source(unfinished)
    convert(whole / "shards", target, Wish(layout), show=False)
    assert not unfinished.exists() and not list(target.rglob("junk"))
    open_source(target)
