"""A picture tells all that decides it: the same one is painted again from its file alone, by the same model and no other."""

import base64
import json
import math
import tracemalloc
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from sample.tiny import CODES, tiny_vocab
from test_sample_command import model, sample  # noqa: F401, fixtures

import run
from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures.metadata import metadata_options, read_metadata
from lumina_jax.sample.made import IDS, PictureOrigin, check_origin, prompt_again
from lumina_jax.sample.prompt import PromptBuilder

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 200, (CODES, 16, 16, 3), np.uint8))


def pixels(file) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_a_picture_is_painted_again_from_its_file_alone(sample, tmp_path, capsys):  # noqa: F811
    lines = [{"prompt": "w1", "size": "32x32"}, {"prompt": "w2 w3", "size": "64x32", "seed": -(2**70)}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--per-prompt", "2", "--seed", "9", "--temperature", "1.5", "--out", "first")
    assert sample("--prompts", "p.jsonl", *words)[0] == 0
    files = sorted((tmp_path / "first").glob("*.png"))
    assert len(files) == 4 and len({pixels(file).tobytes() for file in files}) == 4
    for number, file in enumerate(files):
        assert sample("--like", str(file), "--out", f"again{number}")[0] == 0
        (painted,) = (tmp_path / f"again{number}").glob("*.png")
        assert (pixels(painted) == pixels(file)).all()
        assert read_metadata(painted.read_bytes(), "") == read_metadata(file.read_bytes(), "")
    assert sample("--like", str(files[3]), "--live", "--out", "live")[0] == 0
    assert (pixels(tmp_path / "live/000-0.png") == pixels(files[3])).all()
    records = [json.loads(line) for line in (tmp_path / "first/samples.jsonl").read_text().splitlines()]
    assert [(record["seed"], record["key"]) for record in records] == [
        *((9, [0, copy]) for copy in range(2)),
        *((-(2**70), [1, copy]) for copy in range(2)),
    ]
    assert all(record["settings"]["temperature"] == 1.5 and record["weights"] for record in records)
    assert run.main(["inspect", str(files[0])]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["prompt"], shown["seed"], shown["temperature"]) == ("w1", "9", "1.5")


def test_changes_and_contradictions(sample, tmp_path):  # noqa: F811
    assert sample("--prompt", "w1", "--size", "32x32", "--out", "o")[0] == 0
    for option, value in (("--prompt", "w2"), ("--seed", "0"), ("--seed", "5")):
        code, _, err = sample("--like", "o/000-0.png", option, value, "--out", "p")
        assert code == 2 and f"{option} is what --like FILE tells" in err
    assert sample("--like", "o/000-0.png", "--top-k", "1", "--out", "greedy")[0] == 0
    assert read_metadata((tmp_path / "greedy/000-0.png").read_bytes(), "")["settings"]["image_top_k"] == 1
    Image.new("RGB", (32, 32)).save("plain.png")
    code, _, err = sample("--like", "plain.png", "--out", "q")
    assert code == 2 and "plain.png does not say how it was made" in err
    made = read_metadata((tmp_path / "o/000-0.png").read_bytes(), "") | {"model": "gs:/bucket/run"}
    Image.new("RGB", (32, 32)).save("store.png", **metadata_options(made))
    code, _, err = sample("--like", "store.png", "--out", "q")
    assert code == 2 and "store.png names a model of which there is none: gs:/bucket/run looks like a URL" in err


def test_another_model_is_refused_and_another_version_said():
    origin = PictureOrigin("out/run", "aa", "float32", "bb", "cc", "cpu", "0.2", "0.1")
    told = vars(origin)
    assert check_origin(told, origin, "p") == ""
    assert "jax 0.0, now 0.1" in check_origin(told | {"jax": "0.0"}, origin, "p")
    for name in ("weights", "dtype", "vq_weights", "tokenizer"):
        with pytest.raises(
            InputError, match=f"p was made with {name} {getattr(origin, name)}, not other; .*out/run with --"
        ):
            check_origin(told, replace(origin, **{name: "other"}), "p")


def packed(ids) -> str:
    return base64.b64encode(zlib.compress(np.asarray(ids, IDS).tobytes())).decode()


GIVEN = {"prompt": "w1", "task": "generate", "rows": 4, "cols": 2, "seed": -(2**70), "key": [3, 1], "tokens": 16}
GIVEN |= {"settings": asdict(SampleConfig()), "ids": packed([5, 6])}
BUILDER = PromptBuilder(VQ, VOCAB, DataConfig(size=64, patch=32))


def test_what_a_file_tells_is_the_prompt_that_was_asked():
    prompt = prompt_again(GIVEN, BUILDER, "p")
    assert (prompt.text, prompt.size, prompt.seed, prompt.place) == ("w1", (4, 2), -(2**70), (3, 1))
    assert prompt.ids.tolist() == [5, 6] and prompt.cfg == SampleConfig() and prompt.picture == 16
    assert prompt_again(GIVEN | {"rows": None, "tokens": 0, "task": "chat"}, BUILDER, "p").size is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": "?"},
        {"ids": "eJw="},
        {"ids": None},
        {"ids": packed([])},
        {"ids": packed([-1])},
        {"ids": packed([10**6])},
        {"ids": packed([5, 6])[:-8]},
        {"ids": packed(np.zeros(10**7))},
        {"rows": 10**6, "cols": 10**6},
        {"rows": 10**30},
        {"rows": 4.0},
        {"rows": 3},
        {"rows": 0},
        {"cols": None},
        {"tokens": 15},
        {"tokens": -1, "rows": None},
        {"tokens": 10**9, "rows": None},
        {"seed": math.inf},
        {"seed": "7"},
        {"seed": True},
        {"key": [-1, 0]},
        {"key": [2**70, 0]},
        {"key": [1]},
        {"key": None},
        {"prompt": 5},
        {"prompt": "a\0"},
        {"prompt": "\ud800"},
        {"task": "nope"},
        {"task": ["generate"]},
        {"settings": "x"},
        {"settings": None},
        {"settings": asdict(SampleConfig()) | {"image_top_k": 20.5}},
        {"settings": asdict(SampleConfig()) | {"guidance": "4"}},
        {"settings": asdict(SampleConfig()) | {"window": True}},
        {"settings": asdict(SampleConfig()) | {"temperature": math.nan}},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_what_no_picture_of_ours_tells_is_refused_in_a_line(wrong):
    with pytest.raises(InputError, match="p does not tell all that its picture needs") as caught:
        prompt_again(GIVEN | wrong, BUILDER, "p")
    assert len(str(caught.value)) < 400


def test_what_is_lacking_is_refused_too():
    for name in GIVEN:
        with pytest.raises(InputError, match=f"p does not tell all that its picture needs: KeyError: '{name}'"):
            prompt_again({key: value for key, value in GIVEN.items() if key != name}, BUILDER, "p")


def test_tokens_that_unpack_without_end_are_never_all_in_memory():
    """Zlib packs a thousand zeros into one byte: what is unpacked is at most the longest prompt."""
    bomb = GIVEN | {"ids": base64.b64encode(zlib.compress(bytes(1 << 28), 9)).decode()}
    tracemalloc.start()
    with pytest.raises(InputError, match="ids holds more than the"):
        prompt_again(bomb, BUILDER, "p")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 22
