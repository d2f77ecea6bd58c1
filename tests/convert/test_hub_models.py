"""Models by their address on a hub: the published layouts, scaled down, fetched in part, completed from the authors' repository."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubRepository

import run
from convert import load_model, tokenizer_files
from convert.convert import Target, convert, open_source
from convert.fetch import TOKENIZER_REPOSITORIES, fetch_checkpoint, fetch_model
from convert.needed_files import checkpoint_files, tokenizer_names
from lumina_jax import load
from lumina_jax.cli.hub_fields import fetched_fields
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.hub.address import parse
from lumina_jax.hub.cache import cached_repository
from lumina_jax.train.checkpoint import flatten

TOY = Path(__file__).resolve().parents[2] / "assets" / "toy"
MODEL, TOKENIZERS = "hf://Alpha-VLLM/Lumina-mGPT-7B-768", TOKENIZER_REPOSITORIES[0]
HERE = ["tokenizer.json", "vq.npz"]
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The toy model as the authors publish theirs: three files of safetensors with an index, and no tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "model"
    convert(TOY, folder, Target("lumina", 3, "bf16"), show=False)
    for path in [*folder.rglob("tokenizer*"), *folder.rglob("vq.npz"), folder / "experiment.json"]:
        path.unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({n: v for n, v in config.items() if n != "target_size"}))
    assert [*SHARDS, "model.safetensors.index.json"] == sorted(path.name for path in folder.glob("model*"))
    return folder


@pytest.fixture
def authors(hub, published):
    """The hub with the model and the repository that has the tokenizers; weights as .bin and an optimizer lie beside the model."""
    extra = {
        "pytorch_model.bin": b"x" * 5000,
        "optimizer.00000-of-00001.pth": b"x" * 5000,
        "README.md": b"words",
    }
    repository = HubRepository.of(published)
    repository.files |= extra
    hub.repositories[MODEL.removeprefix("hf://")] = repository
    names = {f"original_tokenizers/{name}": (TOY / name).read_bytes() for name in HERE}
    hub.repositories[TOKENIZERS.removeprefix("hf://")] = HubRepository({**names, "model.safetensors": b"x" * 9000})
    return hub


def names_in(address: str) -> set[str]:
    cache = cached_repository(parse(address))
    return set(cache.names(cache.commit_of("main")))


def test_a_published_model_is_fetched_without_what_it_does_not_need(authors, published):
    local = fetch_model(MODEL)
    assert names_in(MODEL) == {*SHARDS, "model.safetensors.index.json", "config.json", "checksums.json", "README.md"}
    assert names_in(TOKENIZERS) == {f"original_tokenizers/{name}" for name in HERE}
    files = tokenizer_files.find(Path(local.folder), None, local.tokenizer, local.vq)
    tokenizer_files.check(files, open_source(local.folder).cfg)
    fetched, original = (flatten(load_model(folder)[0]) for folder in (local.folder, published))
    for name, array in original.items():
        assert np.asarray(fetched[name]).tobytes() == np.asarray(array).tobytes(), name


def test_the_command_line_and_python_take_it_where_a_model_is_given(authors, tmp_path, capsys):
    assert run.main(["convert", "inspect", MODEL]) == 0
    assert "Lumina-mGPT-7B-768" in (said := capsys.readouterr().out) and "no problems" in said
    assert run.main(["convert", "import", MODEL, str(tmp_path / "model")]) == 0
    assert (
        sorted(path.name for path in (tmp_path / "model/tokenizer").iterdir()) == HERE[:1]
        and (tmp_path / "model/vq.npz").is_file()
    )
    loaded = load(MODEL, vq=TOKENIZERS)
    assert loaded.model.cfg.vocab == len(loaded.vocab) and loaded.image_tokenizer.codes == len(loaded.vocab.code_ids)
    assert (768, 768) in loaded.prompts.sizes
    assert run.main(["sample", "--list-sizes", "--model", MODEL]) == 0
    assert "768x768" in capsys.readouterr().out


def test_a_checkpoint_of_the_cache_is_verified_as_its_links_say(authors, capsys):
    folder = Path(fetch_checkpoint(MODEL))
    (folder / "checksums.json").unlink()
    assert run.main(["convert", "inspect", "--deep", str(folder)]) == 0
    file = (folder / SHARDS[1]).resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert run.main(["convert", "inspect", "--deep", str(folder)]) == 1
    assert f"{SHARDS[1]} is damaged" in capsys.readouterr().out


def test_what_is_missing_names_every_place_and_the_cure(authors, tmp_path):
    authors.repositories[TOKENIZERS.removeprefix("hf://")].gated = True
    with pytest.raises(MissingFileError) as caught:
        fetch_model(MODEL)
    line = str(caught.value)
    assert line.startswith(
        "no text_tokenizer.json and no vqgan.ckpt and its .yaml for this model: hf://Alpha-VLLM/Lumina"
    )
    assert f"{TOKENIZERS} is gated" in line and "give it as --tokenizer FOLDER --vq FOLDER" in line and "\n" not in line
    assert fetch_model(MODEL, str(TOY), str(TOY)).tokenizer == str(TOY)
    assert fetch_model(MODEL, required=False).vq == ""
    authors.repositories[TOKENIZERS.removeprefix("hf://")].gated = False
    assert fetch_model(MODEL, str(TOY)).vq.endswith("original_tokenizers/vq.npz")


def test_a_missing_file_of_weights_is_named_before_any_byte_comes(authors):
    del authors.repositories[MODEL.removeprefix("hf://")].files[SHARDS[2]]
    with pytest.raises(MissingFileError, match=rf"{MODEL} lacks {SHARDS[2]} of the 3 files of its weights"):
        fetch_checkpoint(MODEL)
    assert authors.fetched() == []


def test_training_starts_from_it_once(authors, tmp_path):
    changes = [f"out={tmp_path}/run", f"start={MODEL}", f"data.tokenizer={TOKENIZERS}", f"vq.path={TOKENIZERS}"]
    cfg = run.load_experiment("configs/toy_stage1.py", changes)
    fetched = fetched_fields(cfg, trains=True)
    assert fetched.start == f"{tmp_path}/run/start" and open_source(fetched.start).layout == "ours"
    assert Path(fetched.data.tokenizer).is_file() and Path(fetched.vq.path).is_file()
    count = len(authors.requests)
    assert fetched_fields(cfg, trains=True) == fetched
    assert {path for _, path, *_ in authors.requests[count:]} == {
        f"/api/models/{TOKENIZERS.removeprefix('hf://')}/revision/main"
    }
    with pytest.raises(InputError, match=r"start=hf://\S+: every host of a pod would fetch a copy"):
        fetched_fields(cfg, distributed=True)


@pytest.mark.parametrize("words", [["--prompts"], ["--out"], ["--image"]])
def test_other_arguments_say_that_they_take_no_repository(words, capsys):
    with pytest.raises(SystemExit):
        run.parse(["sample", *words, "hf://owner/name/x"])
    assert "stands only for a model, its --tokenizer and its --vq" in capsys.readouterr().err


META = [
    "models/7b/params.json",
    "models/7b/consolidated.pth",
    "models/7b/consolidate_params.json",
    "tokenizer/text_tokenizer.json",
]
META += ["tokenizer/vqgan.ckpt", "tokenizer/vqgan.yaml", "demo.mp4", "LICENSE"]
RUN = [f"checkpoints/{step}/{name}" for step in (9, 10) for name in ("commit_success.txt", "state/x")] + [
    "checkpoints/11/state/x"
]


@pytest.mark.parametrize(
    ("names", "base", "expected"),
    [
        (META, "", [name for name in META if name != "demo.mp4"]),
        ([*META, "models/30b/params.json"], "models/7b", [name for name in META if name != "demo.mp4"]),
        ([*RUN, "metrics.jsonl"], "", RUN[2:4]),
        (
            ["config.json", "pytorch_model.bin", "model.safetensors", "x.pt"],
            "",
            ["config.json", "model.safetensors"],
        ),
        (["config.json", "pytorch_model.bin"], "", ["config.json", "pytorch_model.bin"]),
    ],
    ids=["meta", "meta-one-of-two", "run", "safetensors", "bin"],
)
def test_the_needed_files_of_each_layout(names, base, expected):
    assert checkpoint_files(names, base, "hf://o/n") == sorted(expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["README.md"], "holds no checkpoint: neither"),
        (["config.json"], "no weights; looked for model.safetensors and"),
        (["models/7b/params.json", "models/30b/params.json"], r"name one of hf://o/n/models/30b, hf://o/n/models/7b"),
        (["params.json"], "but no consolidated"),
    ],
)
def test_what_is_no_checkpoint_says_so(names, message):
    with pytest.raises((MissingFileError, InputError), match=message):
        checkpoint_files(names, "", "hf://o/n")


def test_tokenizers_are_found_by_folder_or_file():
    vq = ["tokenizer/vqgan.ckpt", "tokenizer/vqgan.yaml"]
    assert tokenizer_names(META, "tokenizer") == (["tokenizer/text_tokenizer.json"], vq)
    assert tokenizer_names(META, "tokenizer/vqgan.ckpt")[1] == vq
    assert tokenizer_names(["a"], "") == ([], [])


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"needs huggingface_hub .*pip install .*\[hub\]"):
        fetch_checkpoint(MODEL)
