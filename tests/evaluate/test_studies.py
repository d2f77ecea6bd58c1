"""Studies: settings varied one at a time under one random key, distances of pictures, words read back, sheets."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import run
from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.evaluate.reconstruction import picture_files
from lumina_jax.evaluate.studies import WRITTEN, varied
from lumina_jax.evaluate.variety import mean_of, rms, variety
from lumina_jax.evaluate.written_words import edit_distance, find_reader, quoted, score_words
from lumina_jax.pictures.picture_table import LARGEST, PictureCell, PictureTable, draw_tables, tables_page

SAMPLES = str(Path(__file__).parents[2] / "assets/samples.png")
PROMPT = ["--prompt", "a red circle", "--size", "32x32"]


def levels(*values: int) -> list[np.ndarray]:
    return [np.full((32, 32, 3), value, np.uint8) for value in values]


def test_one_setting_varies_at_a_time_around_the_base():
    values = {"guidance": (3.0, 1.0), "image_top_k": (50,), "temperature": (0.7, 1.0)}
    around, cfgs = varied(SampleConfig(), values)
    assert around == SampleConfig(image_top_k=50) and list(cfgs) == ["guidance", "temperature"]
    assert cfgs["guidance"] == [replace(around, guidance=scale) for scale in (1.0, 3.0)]
    with pytest.raises(InputError, match="nothing varies"):
        varied(SampleConfig(), {"guidance": (3.0,)})
    with pytest.raises(InputError, match="temperature"):
        varied(SampleConfig(), {"temperature": (0.0, 1.0)})


def test_distances_are_means_over_pairs():
    assert rms(*levels(10, 13)) == 3
    row = variety(levels(10, 13, 13), lpips=lambda first, second: float(first.max() != second.max()))
    assert (row["pictures"], row["different"]) == (3, 2)
    assert row["rms"] == pytest.approx(2) and row["lpips"] == pytest.approx(2 / 3) and 0 < row["one_minus_ssim"] < 0.1
    alone = variety(levels(10))
    assert alone == {"pictures": 1, "different": 1, "rms": None, "one_minus_ssim": None}
    assert mean_of([alone, variety(levels(10, 13))])["rms"] == 3 and mean_of([alone])["rms"] is None


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('a sign that says "OPEN 24 HOURS", and "NOW"', ["OPEN 24 HOURS", "NOW"]),
        ("写着“回家”的木牌，「山」", ["回家", "山"]),
        ("the dog's bowl says 'Rex'", ["Rex"]),
        ("a red circle", []),
    ],
)
def test_the_words_in_quotation_marks_are_asked_for(prompt, words):
    assert quoted(prompt) == words


def test_words_are_scored_by_letters():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "ab") == edit_distance("ab", "") == 2
    assert score_words('"Bake  ry"', "BAKE\nRY\n") == {
        "words": "Bake  ry",
        "read": "bake ry",
        "exact": True,
        "character_error_rate": 0.0,
    }
    assert score_words('"open"', "")["character_error_rate"] == 1 and score_words("a cat", "cat") == {}
    assert sum(bool(quoted(prompt)) for prompt in WRITTEN) == 5


def test_the_first_reader_that_works_reads(monkeypatch):
    def no_program():
        raise FileNotFoundError("tesseract")

    monkeypatch.setitem(sys.modules, "pytesseract", None)
    monkeypatch.setitem(sys.modules, "easyocr", None)
    reader, line = find_reader()
    assert reader is None and "pip install pytesseract" in line and "pip install easyocr" in line
    with pytest.raises(MissingPackageError, match="pip install easyocr"):
        find_reader("easyocr")
    monkeypatch.setitem(sys.modules, "pytesseract", SimpleNamespace(get_languages=no_program))
    found = SimpleNamespace(readtext=lambda pixels, detail: ["OPEN", str(pixels.shape)])
    monkeypatch.setitem(sys.modules, "easyocr", SimpleNamespace(Reader=lambda languages, verbose: found))
    reader, line = find_reader()
    assert line == "the words are read back by easyocr"
    assert reader.read(Image.new("L", (8, 4))) == "OPEN (4, 8, 3)"
    with pytest.raises(MissingPackageError, match="install tesseract-ocr"):
        find_reader("pytesseract")
    assert find_reader("none") == (None, "the words are not read back")


def test_a_sheet_and_a_page_show_every_picture_and_label():
    small, large = Image.new("RGB", (64, 32), (200, 0, 0)), Image.new("RGB", (1024, 512), (0, 0, 200))
    table = PictureTable(
        "T", ("a", "b"), (("<one>", (PictureCell(small, "x"), PictureCell(None))), ("two", (PictureCell(large), None)))
    )
    colours = dict((colour, count) for count, colour in draw_tables("Title", "note", [table]).getcolors(10**6))
    assert colours[200, 0, 0] == 128 * 64 and colours[0, 0, 200] == LARGEST * LARGEST // 2
    page = tables_page("Title", "回家 🐱", [table])
    assert page.count("<img") == 2 and "回家 🐱" in page and "&lt;one&gt;" in page and "no whole picture" in page
    with pytest.raises(InputError, match="2 columns"):
        PictureTable("T", ("a", "b"), (("one", (PictureCell(small),)),))


def test_settings_share_a_key_and_a_stopped_study_goes_on(tmp_path, capsys):
    command = [
        "study",
        "settings",
        *PROMPT,
        "--guidance",
        "4",
        "--top-k",
        "1,2000",
        "--temperature",
        "0.5,1.0",
        "--out",
        str(tmp_path),
    ]
    assert run.main(command) == 0
    record = json.loads((tmp_path / "study.json").read_text())
    parts = {(part["settings"]["image_top_k"], part["settings"]["temperature"]): part for part in record["parts"]}
    assert list(parts) == [(1, 1.0), (2000, 1.0), (2000, 0.5)], "the default is painted once"
    files = {key: tmp_path / part["answers"][0]["files"][0] for key, part in parts.items()}
    assert (
        Image.open(tmp_path / "sheet.png").width > 300
        and "top-k 2000 (default)" in (tmp_path / "sheet.html").read_text()
    )
    before = files[1, 1.0].stat().st_mtime_ns
    painted = files[2000, 0.5].read_bytes()
    files[2000, 0.5].unlink()
    assert run.main(command) == 0
    assert files[2000, 0.5].read_bytes() == painted and files[1, 1.0].stat().st_mtime_ns == before
    assert run.main([*command, "--seed", "1"]) == 2
    assert "not written by this command" in capsys.readouterr().err


def test_seeds_and_words_are_measured_and_printed(tmp_path, capsys, monkeypatch):
    assert run.main(["study", "seeds", *PROMPT, "--per-prompt", "3", "--out", str(tmp_path / "seeds")]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads(printed[printed.index("{") :])
    assert numbers["prompts"][0]["pictures"] == 3 and 1 <= numbers["mean"]["different"] <= 3
    stub = SimpleNamespace(
        get_languages=lambda: ["eng", "osd"], image_to_string=lambda image, lang: f"{lang} {image.size}"
    )
    monkeypatch.setitem(sys.modules, "pytesseract", stub)
    words = ["--prompt", 'a red circle "eng (32, 32)"', "--prompt", "a blue square"]
    assert run.main(["study", "text", *words, "--size", "32x32", "--out", str(tmp_path / "text")]) == 0
    record = json.loads((tmp_path / "text/study.json").read_text())["numbers"]
    assert record["reader"] == "pytesseract" and record["answers"][0]["exact"] and record["answers"][1] == {}
    assert record["mean"] == {"exact": 1, "character_error_rate": 0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds"], "give --prompt TEXT"),
        (["settings", "--prompt", "x", "--guidance", "4", "--top-k", "5", "--temperature", "1"], "nothing varies"),
        (["settings", "--prompt", "x", "--temperature", "0,1"], "temperature"),
        (["text", "--ocr", "easyocr"], "pip install easyocr"),
        (["seeds", "--prompt", "x", "--lpips", "/gone.pth", "/gone.pth"], "/gone.pth"),
        (["seeds", "--prompts", "FILE"], "line 1: the task 'describe'"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "easyocr", None)
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"task": "describe", "image": SAMPLES}))
    words = [str(file) if word == "FILE" else word for word in words]
    assert run.main(["study", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_pictures_of_a_folder_are_measured_and_compared(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, level in (("b.png", 250), ("a.PNG", 5)):
        Image.new("RGB", (40, 32), (level, 9, 9)).save(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no picture")
    files = picture_files([str(tmp_path / "in")])
    assert [Path(file).name for file in files] == ["a.PNG", "b.png"]
    assert run.main(["evaluate", "--pictures", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "out/reconstruction.json").read_text())
    assert json.loads(printed[printed.index("{") :])["reconstruction"] == table
    rows = [table["pictures"][file] for file in files]
    assert table["mean"] == {name: np.mean([row[name] for row in rows]) for name in ("psnr_db", "ssim")}
    assert (tmp_path / "out/reconstruction.png").is_file()
    with pytest.raises(InputError, match="holds no picture"):
        picture_files([str(tmp_path / "out/..")])
