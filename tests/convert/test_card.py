"""The page of a published model: what the hub reads of it, what people read, and what it refuses to be written without."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

import run
from convert.card import CardRequest, model_card
from convert.convert import Target, convert
from convert.origins import read_license
from lumina_jax.errors import ExistingFileError, InputError

TOY = Path(__file__).resolve().parents[2] / "assets" / "toy"
SCORES = {
    "held_out": {"loss": 1.25, "tokens": 4000},
    "reconstruction": {"mean": {"psnr_db": 21.5}},
    "words": "none",
    "ok": True,
}


def exported(tmp_path: Path, *options: str, layout: str = "lumina", source: Path = TOY) -> Path:
    """The folder of an export with a card, which must succeed."""
    out = tmp_path / "My-model"
    assert run.main(["convert", "export", str(source), str(out), "--layout", layout, "--card", *options]) == 0
    return out


def test_the_hub_s_client_reads_the_card_of_a_run(tmp_path):
    (tmp_path / "scores.txt").write_text(json.dumps(SCORES))
    Image.new("RGB", (8, 8)).save(tmp_path / "000-0.png")
    more = ["--scores", str(tmp_path / "scores.txt"), "--pictures", str(tmp_path / "000-0.png")]
    out = exported(tmp_path, "--license", "apache-2.0", *more)
    card = ModelCard.load(out / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and "base_model" not in data and "license_link" not in data
    assert data["pipeline_tag"] == "any-to-any" and data["library_name"] == "lumina-jax" and data["language"] == "en"
    results = {result.metric_type: (result.dataset_name, result.metric_value) for result in card.data.eval_results}
    assert results["held_out / loss"] == ("held_out", 1.25) and results["reconstruction / mean / psnr_db"][1] == 21.5
    assert card.data.model_name == "My-model" and len(results) == 3
    for line in (
        "run.py sample --model hf://OWNER/My-model",
        'FlexARInferenceSolver(model_path="OWNER/My-model", precision="bf16"',
        "| guidance | ",
        "| optim.lr | ",
        "| held_out / loss | 1.25 |",
        "![pictures/000-0.png](pictures/000-0.png)",
        "trained from random weights",
        "The weights: apache-2.0.",
    ):
        assert line in card.text, line
    assert json.loads((out / "scores.json").read_text()) == SCORES and (out / "pictures/000-0.png").is_file()
    assert str(tmp_path) not in card.text and "Chameleon, which is licensed" not in card.text


@pytest.fixture
def tuned(tmp_path) -> Path:
    """A run's folder that says that it started from a published model, of which only the name is known here."""
    folder = tmp_path / "run"
    convert(TOY, folder, Target("hf"), show=False)
    settings = json.loads((folder / "experiment.json").read_text())
    settings["start"] = "elsewhere/Chameleon_7B_mGPT"
    (folder / "experiment.json").write_text(json.dumps(settings))
    return folder


def test_weights_of_chameleon_keep_its_licence(tuned, tmp_path):
    (tuned / "LICENSE").write_text("the licence itself")
    card = ModelCard.load(exported(tmp_path, layout="hf", source=tuned) / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "chameleon-research-license")
    assert card.data.base_model == "Alpha-VLLM/Chameleon_7B_mGPT" and card.data.license_link.startswith(
        "https://ai.meta.com/"
    )
    assert "passes on its licence" in " ".join(card.text.split()) and "see [LICENSE](LICENSE)" in card.text
    assert (
        tmp_path / "My-model/LICENSE"
    ).is_file() and "ChameleonForConditionalGeneration.from_pretrained" in card.text


def test_the_origin_is_asked_for_where_nothing_tells_it(tuned, tmp_path):
    with pytest.raises(InputError, match=r"nothing tells under which licence .*--license"):
        model_card(TOY, "hf", CardRequest("x"))
    settings = json.loads((tuned / "experiment.json").read_text())
    (tuned / "experiment.json").write_text(json.dumps(settings | {"start": "out/stage1"}))
    with pytest.raises(InputError, match=r"trained from out/stage1, .*--base-model OWNER/NAME, or none"):
        model_card(tuned, "hf", CardRequest("x", "mit"))
    assert "base_model: o/n" in model_card(tuned, "hf", CardRequest("x", "mit", "o/n")).text
    assert "base_model" not in model_card(tuned, "hf", CardRequest("x", "mit", "none")).text
    with pytest.raises(InputError, match="give a repository as OWNER/NAME"):
        model_card(tuned, "hf", CardRequest("x", "mit", "n"))


@pytest.mark.parametrize("text", ["", "Apache 2.0", "x=http://insecure", "x="])
def test_a_licence_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=r"give an identifier such as apache-2\.0"):
        read_license(text)


def test_a_licence_of_its_own_has_a_name_and_a_link():
    assert (read_license("mine=https://a.b/c").identifier, read_license("mine=https://a.b/c").words) == (
        "other",
        "[mine](https://a.b/c)",
    )


def test_what_the_card_lacks_is_said_before_anything_is_written(tmp_path, capsys):
    export = ["convert", "export", str(TOY), str(tmp_path / "out"), "--layout", "hf"]
    (tmp_path / "words.json").write_text('{"a": "b"}')
    (tmp_path / "x.tiff").write_text("")
    card = [*export, "--card", "--license", "mit"]
    for words, message in (
        ([*export, "--scores", "x.json"], "--scores goes with --card"),
        ([*export, "--card"], "nothing tells under which licence"),
        ([*card, "--scores", str(tmp_path / "words.json")], "holds no numbers"),
        ([*card, "--scores", str(tmp_path / "gone.json")], "is missing"),
        ([*card, "--pictures", str(tmp_path / "gone.png")], "is missing; give files of pictures"),
        ([*card, "--pictures", str(tmp_path / "x.tiff")], "convert it first"),
    ):
        assert run.main(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_another_readme_is_never_replaced(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ExistingFileError, match=r"README\.md exists already"):
        model_card(TOY, "hf", CardRequest("x", "mit")).write(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
