"""A picture tells all that decides it: the same one is painted again from its file alone, by the same model and no other."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_sample_command import model, sample  # noqa: F401, fixtures

import run
from lumina_jax.errors import InputError
from lumina_jax.pictures.metadata import read_metadata
from lumina_jax.sample.made import PictureOrigin, check_origin, prompt_again


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
    code, _, err = sample("--like", "o/000-0.png", "--prompt", "w2", "--out", "p")
    assert code == 2 and "--prompt is what --like FILE tells" in err
    assert sample("--like", "o/000-0.png", "--top-k", "1", "--out", "greedy")[0] == 0
    assert read_metadata((tmp_path / "greedy/000-0.png").read_bytes(), "")["settings"]["image_top_k"] == 1
    Image.new("RGB", (32, 32)).save("plain.png")
    code, _, err = sample("--like", "plain.png", "--out", "q")
    assert code == 2 and "plain.png does not say how it was made" in err


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
    for wrong in ({}, {"ids": "?"}, {"ids": "eJw="}):
        with pytest.raises(InputError, match="p does not tell all that its picture needs"):
            prompt_again(wrong, "p")
