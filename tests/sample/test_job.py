"""Sampling jobs: resumed, shared among workers, and prompts built; the files come out the same."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import CODES, tiny_model, tiny_vocab

import run
from convert import load_model
from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import TASKS, served
from lumina_jax.model.params import fingerprint
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import job as room
from lumina_jax.sample.files import open_image, read_lines
from lumina_jax.sample.job import Answer, Job, check_free, check_workers, finished, paint, seed_key, sheet
from lumina_jax.sample.prompt import PromptBuilder

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig(image_top_k=12, text_top_k=10, max_new_tokens=40)
BUILDER = PromptBuilder(VQ, VOCAB, DataConfig(size=64, patch=32))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def job(**changes) -> Job:
    sizes = ((64, 64), (32, 64), (64, 32))
    prompts = tuple(BUILDER.generate(f"w{number}", size, CFG) for number, size in enumerate(sizes))
    return replace(Job(prompts, seed=4, copies=2, rows=3), **changes)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    answers = list(paint(model, VQ, VOCAB, job(), out))
    assert sorted((answer.ask, answer.copy) for answer in answers) == job().items
    return files(out)


def test_a_resumed_job_writes_the_files_of_an_unbroken_one(model, whole, tmp_path):
    started = paint(model, VQ, VOCAB, job(), tmp_path)
    first = [next(started), next(started)]
    started.close()
    with (tmp_path / job().record).open("ab") as record:
        record.write(b'{"job": "0123')  # a killed run left half a line
    for name in ("samples.jsonl", "000-1-0.png"):
        (tmp_path / f"{name}.01ab23cd.tmp").write_bytes(b"and files that it was writing")
    assert finished(job(), tmp_path) == first
    rest = list(paint(model, VQ, VOCAB, job(), tmp_path, first))
    assert len(rest) == 4 and files(tmp_path) == whole
    assert list(paint(model, VQ, VOCAB, job(), tmp_path, finished(job(), tmp_path))) == []
    assert files(tmp_path) == whole


def pictures_of(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in content.items() if name.endswith(".png")}


def texts(content: dict[str, bytes]) -> list[tuple]:
    lines = map(json.loads, content["samples.jsonl"].splitlines())
    return [(line["job"], line["ask"], line["copy"], line["text"]) for line in lines]


def test_workers_share_a_job(model, whole, tmp_path):
    for worker in range(2):
        assert len(list(paint(model, VQ, VOCAB, job(share=(worker, 2)), tmp_path))) == 3
    assert pictures_of(files(tmp_path)) == pictures_of(whole)


def test_copies_differ_and_the_first_is_the_one_alone(model, tmp_path, whole):
    alone = list(paint(model, VQ, VOCAB, job(copies=1), tmp_path))
    lines = [json.loads(line) for line in whole["samples.jsonl"].splitlines()]
    first = {line["ask"]: line["text"] for line in lines if line["copy"] == 0}
    assert {answer.ask: answer.text for answer in alone} == first
    assert len({line["text"] for line in lines}) > len(first)


def test_pictures_are_named_by_prompt_and_copy_and_shown_on_the_sheet(tmp_path):
    items = [(0, 0), (0, 1), (2, 1)]
    assert [job().stem(item) for item in items] == ["000-0", "000-1", "002-1"]
    assert job(copies=1).stem((1, 0)) == "001" and job(copies=12).stem((1, 3)) == "001-03"
    answers = []
    for ask, copy in items:
        name = f"{job().stem((ask, copy))}-0.png"
        Image.new("RGB", (64, 32)).save(tmp_path / name)
        answers.append(Answer(ask, copy, "w1", (name,), "", 5))
    with Image.open(sheet(job(), tmp_path, answers)) as image:
        assert image.width > 3 * 64 and image.height > 32


OTHER = BUILDER.generate("w9", (64, 64), CFG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=5), "other prompts, seeds or settings .prompt 1, 'w0'"),
        (dict(copies=3), "other prompts, seeds or settings"),
        (dict(prompts=job().prompts[:2]), "an answer to prompt 3, 'w2', which this job does not ask"),
        (dict(prompts=(job().prompts[0], OTHER, job().prompts[2])), "answers prompt 2 as 'w1', but now it is 'w9'"),
        (dict(prompts=(None, *job().prompts[1:])), "an answer to prompt 1, 'w0', which this job does not ask"),
    ],
)
def test_a_folder_of_another_job_is_refused_and_the_prompt_that_differs_is_named(whole, tmp_path, change, message):
    (tmp_path / "samples.jsonl").write_bytes(whole["samples.jsonl"])
    with pytest.raises(ValueError, match=message):
        finished(job(**change), tmp_path)


def test_a_job_may_grow_and_a_rejected_prompt_may_be_mended(model, whole, tmp_path):
    two = job(prompts=(job().prompts[0], None, job().prompts[2]))
    assert sorted({ask for ask, _ in two.items}) == [0, 2] and two.fingerprints[1] is None
    list(paint(model, VQ, VOCAB, two, tmp_path))
    rest = list(paint(model, VQ, VOCAB, job(), tmp_path, finished(job(), tmp_path)))
    assert {answer.ask for answer in rest} == {1} and pictures_of(files(tmp_path)) == pictures_of(whole)
    assert texts(files(tmp_path)) == texts(whole)


def damage(file, kind: str) -> None:
    content = file.read_bytes()
    match kind:
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "half":
            file.write_bytes(content[: len(content) // 2])
        case "changed":
            file.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
        case "a folder":
            file.unlink()
            file.with_name("kept").mkdir()
            file.symlink_to("kept")


@pytest.mark.parametrize("kind", ["gone", "empty", "half", "changed", "a folder"])
def test_a_picture_that_is_gone_or_damaged_is_painted_again(model, whole, tmp_path, kind):
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    damage(tmp_path / "001-1-0.png", kind)
    done = finished(job(), tmp_path)
    assert {(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)} == {(answer.ask, answer.copy) for answer in done}
    (again,) = paint(model, VQ, VOCAB, job(), tmp_path, done)
    assert (again.ask, again.copy) == (1, 1)
    (tmp_path / "kept").rmdir() if kind == "a folder" else None
    assert files(tmp_path) == whole


def test_a_line_that_is_none_of_a_job_is_named(whole, tmp_path):
    for line in (b"nonsense", b"[]", b'{"job": "x"}', b'{"ask": 0}'):
        (tmp_path / "samples.jsonl").write_bytes(whole["samples.jsonl"] + line + b"\n")
        with pytest.raises(ValueError, match=r"samples.jsonl, line 7, is no line of a job"):
            finished(job(), tmp_path)


@pytest.mark.parametrize(
    "name", ["samples.jsonl", "000-0.png", "live.png", "turn3-0.png", "grid.png", "samples-0-of-2.jsonl"]
)
def test_a_folder_with_results_of_any_kind_is_not_free(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "1.png").touch()
    check_free(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match=f"holds results of an earlier run .{name}.; continue it with --resume"):
        check_free(tmp_path)


def test_workers_share_a_folder_but_not_with_another_job(model, tmp_path):
    list(paint(model, VQ, VOCAB, job(share=(0, 2)), tmp_path))
    check_free(tmp_path, (1, 2))
    check_workers(job(share=(1, 2)), tmp_path)
    with pytest.raises(ValueError, match=r"samples-0-of-2.jsonl holds answers of another model"):
        check_workers(job(share=(1, 2), seed=5), tmp_path)
    for share in ((0, 2), (1, 3), (0, 1)):
        with pytest.raises(FileExistsError, match=r"samples-0-of-2.jsonl|\.png"):
            check_free(tmp_path, share)


def test_seeds_of_any_size_draw_differently():
    seeds = (0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 + 1, 10**30, -1, -(2**32), -(10**30))
    keys = [tuple(jax.random.key_data(seed_key(seed)).tolist()) for seed in seeds]
    assert len(set(keys)) == len(seeds)
    for seed in (0, 1, 2**32 - 1):
        assert seed_key(seed) == jax.random.key(seed)


def test_a_job_of_too_many_answers_is_refused():
    with pytest.raises(ValueError, match=r"3 prompts x 1,000,000,000 answers; a job holds at most 1,000,000"):
        job(copies=10**9)


def test_a_sheet_of_many_pictures_holds_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SHEET_PICTURES", 5)
    answers = [Answer(ask, 0, "w1 " * 4000, (f"{ask}.png",), "", 5) for ask in range(9)]
    for ask in range(9):
        Image.new("RGB", (16, 16), (ask, 0, 0)).save(tmp_path / f"{ask}.png")
    with Image.open(sheet(job(), tmp_path, answers)) as image:
        assert {color[0] for _, color in image.getcolors(10000) if color[1:] == (0, 0)} == {0, 1, 2, 3, 4}
        assert image.height < 600


def test_a_folder_of_another_model_is_refused(model, tmp_path):
    started_job = job(model=fingerprint(model))
    started = paint(model, VQ, VOCAB, started_job, tmp_path)
    first = next(started)
    started.close()
    assert finished(job(model=fingerprint(tiny_model())), tmp_path) == [first]
    other = jax.tree.map(lambda x: x * 2, model)
    for wrong in (fingerprint(other), ""):
        with pytest.raises(ValueError, match=r"samples.jsonl holds answers of another model .* else another folder"):
            finished(job(model=wrong), tmp_path)
    assert finished(replace(started_job, share=(1, 2)), tmp_path) == []  # another worker's file


def test_the_command_line_resumes_with_the_model_it_was_given(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(room, "finished", lambda job, out: jobs.append(job) or [])
    monkeypatch.setattr(room, "paint", lambda *_: [])
    arguments = ["--prompt", "a red circle", "--size", "64x64", "--resume", "--out", str(tmp_path)]
    assert run.main(["sample", *arguments]) == run.main(["sample", *arguments, "--int8"]) == 0
    toy = load_model(run.REPOSITORY / run.TOY_MODEL)[0]
    assert jobs[0].model == fingerprint(jax.tree.map(np.float32, toy)) != jobs[1].model != ""


def test_pictures_are_cropped_to_a_size_the_model_knows_and_answered_at_it():
    prompt = BUILDER.task("depth", "", [Image.new("RGB", (300, 140), "red")], CFG)
    assert prompt.size == (2, 4) and prompt.text == "depth"
    assert (prompt.ids == VOCAB.boi).sum() == 1
    assert BUILDER.task("describe", "", [Image.new("L", (64, 64))], CFG).size is None
    assert (BUILDER.task("question", "w1", [Image.new("RGB", (64, 64))] * 2, CFG).ids == VOCAB.boi).sum() == 2
    assert replace(BUILDER, forced=False).generate("w1", None, CFG).size is None


def test_words_alone_and_free_messages_are_tasks_too():
    picture = Image.new("RGB", (64, 64))
    words = BUILDER.task("text", "w1 <|image|>", [], CFG)
    assert (words.task, words.size, words.picture) == ("text", None, 0) and VOCAB.boi not in words.ids
    message, free = (
        BUILDER.message("w1 <|image|>", [picture], CFG),
        BUILDER.task("chat", "w1 <|image|>", [picture], CFG),
    )
    assert free.ids.tolist() == message.ids.tolist() and free.task == message.task == "chat"
    with pytest.raises(ValueError, match="'text' is about words alone"):
        BUILDER.task("text", "w1", [picture], CFG)


def test_with_as_is_pictures_of_a_size_that_tokens_can_express_are_not_cropped():
    exact, large = replace(BUILDER, as_is=True), Image.new("RGB", (96, 96))
    assert exact.cropped(large).size == (96, 96) and BUILDER.cropped(large).size == (64, 64)
    for size in ((90, 96), (128, 128)):  # no multiple of 32 px; larger than size tokens can express
        assert exact.cropped(Image.new("RGB", size)).size == (64, 64)


def test_a_file_of_prompts_is_read_line_by_line(tmp_path):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "w1", "size": "64x32", "seed": 3}\n\n{"task": "edit", "prompt": "w2", "image": "a.png"}\n'
    )
    lines = read_lines(tmp_path / "p.jsonl")
    assert [line.number for line in lines] == [1, 3]
    prompts = [BUILDER.from_record(line.record(), tmp_path, lambda task: served(task, CFG)) for line in lines]
    assert [(prompt.text, prompt.size, prompt.seed) for prompt in prompts] == [("w1", (2, 4), 3), ("w2", (4, 4), None)]
    assert prompts[1].cfg.image_top_k == TASKS["edit"].image_top_k
    (tmp_path / "p.txt").write_text("w1\n\nw2 w3\n")
    assert [line.record() for line in read_lines(tmp_path / "p.txt")] == [{"prompt": "w1"}, {"prompt": "w2 w3"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "w1", "colour": "red"}, "unknown field 'colour'; the fields are codes"),
        ({"task": "dance"}, "no task 'dance'; the tasks are generate"),
        ({"prompt": "w1", "size": "64"}, "'64' is not WIDTHxHEIGHT"),
        ({"prompt": "w1", "size": "64x65"}, "multiples of 32 px, from 32 to 96; the nearest .* is 64x64"),
        ({"prompt": "w1", "size": "640x64"}, "from 32 to 96"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"prompt": " "}, "takes a prompt"),
        ({"prompt": "w1", "image": "a.png"}, "takes a prompt and no picture"),
        ({"task": "depth"}, "is about a picture; give it one"),
        ({"task": "depth", "images": ["a.png", "a.png"]}, "about one picture, not 2"),
        ({"task": "depth", "image": "a.png", "prompt": "w1"}, "takes no text"),
        ({"task": "depth", "image": "none.png"}, "none.png is not a picture"),
    ],
)
def test_a_wrong_line_is_refused(line, message, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        BUILDER.from_record(line, tmp_path, lambda task: CFG)


def test_files_that_are_no_picture_no_text_or_no_json_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.txt: no such file of prompts"):
        read_lines(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a.txt is not a text file"):
        read_lines(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"prompt": "w1"}\nw2\n')
    with pytest.raises(ValueError, match=r"a.jsonl is not a picture .*its first bytes are 7b 22"):
        open_image(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"is not a picture that can be read: .*Is a directory"):
        open_image(tmp_path)


def test_a_picture_of_16_bits_keeps_its_levels(tmp_path):
    Image.fromarray(np.full((32, 32), 257 * 90, np.uint16)).save(tmp_path / "deep.png")
    assert set(np.asarray(BUILDER.cropped(open_image(tmp_path / "deep.png"))).ravel()) == {90}
