"""Nothing of the user's is overwritten: a command replaces what it wrote itself, and refuses what something else wrote."""

import json
from pathlib import Path

import pytest

import run
from lumina_jax.cli.results import command_of, results_folder
from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.fit import claim_fit, fit
from lumina_jax.data.sources import open_source
from lumina_jax.errors import ExistingFileError
from lumina_jax.storage import CLAIMS, claim
from lumina_jax.toyworld.training_run import TrainingRun

REPO = Path(__file__).resolve().parents[1]
A, B = {"source": "a", "seed": 0}, {"source": "a", "seed": 1}


def configs(folder: Path) -> tuple[VQConfig, DataConfig]:
    return VQConfig(kind="patch", path=str(folder / "vq.npz"), codes=8), DataConfig(tokenizer=str(folder / "words"))


def write(folder: Path) -> list[Path]:
    """What a fit writes."""
    files = [folder / "vq.npz", folder / "words" / "tokenizer.json"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("made")
    return files


def test_the_same_fit_is_found_again_and_another_is_refused(tmp_path):
    assert claim_fit(*configs(tmp_path), A)
    write(tmp_path)
    assert not claim_fit(*configs(tmp_path), A)
    with pytest.raises(ExistingFileError, match=r"vq\.npz exists already .* leave out --fit .* vq\.path=FILE\.npz"):
        claim_fit(*configs(tmp_path), B)
    assert not claim_fit(*configs(tmp_path), A)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_fit_that_was_killed_in_the_middle_is_made_again(lost, tmp_path):
    claim_fit(*configs(tmp_path), A)
    write(tmp_path)[lost].unlink()
    assert claim_fit(*configs(tmp_path), A)
    with pytest.raises(ExistingFileError):
        claim_fit(*configs(tmp_path), B)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_file_of_unknown_origin_is_never_replaced(kept, tmp_path):
    write(tmp_path)[1 - kept].unlink()
    with pytest.raises(ExistingFileError):
        claim_fit(*configs(tmp_path), A)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_what_is_gone_may_be_fitted_anew(tmp_path):
    claim_fit(*configs(tmp_path), A)
    for file in write(tmp_path):
        file.unlink()
    assert claim_fit(*configs(tmp_path), B)


def test_the_shipped_codebook_is_not_fitted_over(tmp_path, capsys):
    before = (REPO / "assets/toy/vq.npz").read_bytes()
    changes = [f"vq.path={REPO}/assets/toy/vq.npz", f"data.tokenizer={tmp_path}", f"data.path={tmp_path}/tokens"]
    assert run.main(["pretokenize", "configs/toy_stage1.py", "--source", "toy:9", "--fit", *changes]) == 2
    assert "exists already and was fitted to something else" in capsys.readouterr().err
    assert (REPO / "assets/toy/vq.npz").read_bytes() == before and not list(tmp_path.iterdir())


def test_a_fit_passes_over_bad_records_and_says_how_far_it_is(tmp_path, capsys):
    from PIL import Image

    lines = []
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 9)).save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": f"number {number}"})
    (tmp_path / "2.png").write_bytes(b"no picture")
    lines.append({"image": "gone.png", "caption": "x"})
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    vq, data = configs(tmp_path / "out")
    report = fit(open_source(str(tmp_path / "c.jsonl")), vq, data, sizes=[(64, 64)])
    assert report["pictures"] == 5 and report["exact"] == 1
    assert "fit: 7 of 7 records" in capsys.readouterr().err


def test_a_command_replaces_what_it_wrote_and_nothing_else(tmp_path):
    claim(tmp_path, ["a.png", "b.png"], "run.py refine")
    for name in ("a.png", "b.png", "mine.png"):
        (tmp_path / name).write_text(name)
    claim(tmp_path, ["a.png"], "run.py refine")
    for names, command in ((["mine.png"], "run.py refine"), (["c.png", "b.png"], "run.py evaluate")):
        with pytest.raises(
            ExistingFileError, match=r"\.png exists already and was not written by this command; give another"
        ):
            claim(tmp_path, names, command)
    assert "c.png" not in json.loads((tmp_path / CLAIMS).read_text())


@pytest.mark.parametrize("record", ["", "{", "[]", "nonsense"])
def test_a_damaged_record_of_results_counts_as_none(record, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / CLAIMS).write_text(record)
    with pytest.raises(ExistingFileError):
        claim(tmp_path, ["a.png"], "run.py refine")
    claim(tmp_path, ["new.png"], "run.py refine")


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["evaluate", "--tasks", "1", "--out", "OUT"], "tasks.json"),
        (["evaluate", "--attention", "a red circle", "--out", "OUT"], "attention.png"),
        (["evaluate", "--pictures", str(REPO / "assets/samples.png"), "--out", "OUT"], "reconstruction.json"),
        (["study", "seeds", "--prompt", "a red circle", "--out", "OUT"], "sheet.png"),
        (["study", "text", "--out", "OUT"], "pictures/mine.png"),
        (["refine", str(REPO / "assets/samples.png"), "--out", "OUT"], "samples.png"),
        (["refine", str(REPO / "assets/samples.png"), "--out", "OUT"], "samples-compared.png"),
        (["quickstart", "--minutes", "1", "--out", "OUT"], "report.html"),
        (["quickstart", "--minutes", "1", "--out", "OUT"], "notes.txt"),
        (["grow", "configs/toy_omni_first.py", "start=OUT"], "checkpoints/250/state"),
        (["convert", "import", "assets/toy", "OUT"], "notes.txt"),
        (["convert", "export", "assets/toy", "OUT", "--layout", "hf"], "config.json"),
    ],
)
def test_a_file_of_the_user_s_is_refused_before_work_and_stays(arguments, file, tmp_path, capsys):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("mine")
    assert run.main([word.replace("OUT", str(tmp_path)) for word in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path) in error and "give another" in error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file]
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["evaluate", "--tasks", "1"], ["evaluate", "--tasks", "1", "--seed", "2"]),
        (["evaluate", "--attention", "a red circle"], ["evaluate", "--attention", "a blue circle"]),
        (["refine", "a.png"], ["refine", "a.png", "--top-k", "5"]),
        (["study", "seeds", "--prompt", "a"], ["study", "seeds", "--prompt", "b"]),
        (["data", "inspect", "tokens/a"], ["data", "inspect", "tokens/b"]),
    ],
)
@pytest.mark.parametrize("default", ["out/results", "out/results.html"])
def test_results_are_replaced_by_the_same_command_only(first, second, default, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def begin(words: list[str], out: str | None = None) -> Path:
        command = command_of(run.parse(words))
        path = results_folder(out, default, lambda path: claim(path.parent, [path.name], command))
        path.touch()
        return path

    name = Path(default)
    assert begin(first) == begin(first) == begin([*first, "--out", "elsewhere"]) == name
    assert begin(second) == begin(second) == name.with_stem("results-2")
    with pytest.raises(ExistingFileError, match="not written by this command; give another --out"):
        begin(second, default)


def test_two_pictures_of_one_name_are_not_refined_into_one_file(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes((REPO / "assets/samples.png").read_bytes())
    pictures = [str(tmp_path / folder / "x.png") for folder in ("a", "b")]
    assert run.main(["refine", *pictures, "--out", str(tmp_path / "out")]) == 2
    assert "two of the pictures would become" in capsys.readouterr().err


def test_a_quickstart_goes_on_in_its_own_folder(tmp_path):
    (tmp_path / ".hidden").touch()
    TrainingRun(tmp_path, 1, 12)
    (tmp_path / "vq.npz").touch()
    TrainingRun(tmp_path, 1, 12)


def test_a_fit_without_a_picture_says_why(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "words.jsonl").write_text(
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n'
    )
    changes = [f"vq.path={tmp_path}/fit/vq.npz", f"data.tokenizer={tmp_path}/fit", f"data.path={tmp_path}/tokens"]
    for source, words in (
        (f"folder:{tmp_path}", "1 of them cannot be used, such as record 0: "),
        (f"{tmp_path}/words.jsonl", "they hold words alone; leave out --fit"),
    ):
        assert run.main(["pretokenize", "configs/own_pictures.py", "--source", source, "--fit", *changes]) == 2
        assert f"--fit found no picture in 1 records: {words}" in capsys.readouterr().err
    assert not (tmp_path / "fit/vq.npz").exists()


def test_a_fit_is_told_a_file_for_its_codebook(tmp_path, capsys):
    changes = [f"vq.path={tmp_path}/fit", f"data.tokenizer={tmp_path}/fit", f"data.path={tmp_path}/tokens"]
    assert run.main(["pretokenize", "configs/toy_stage1.py", "--source", "toy:9", "--fit", *changes]) == 2
    assert f"--fit writes a file there; name it, such as vq.path={tmp_path}/fit/vq.npz" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
