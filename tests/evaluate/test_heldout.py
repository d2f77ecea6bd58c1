"""Loss, accuracy and greedy shares of a pretokenized folder equal those of a plain computation, record by record."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import run
from convert import load_model
from lumina_jax.data.shards import Shards
from lumina_jax.errors import InputError
from lumina_jax.evaluate.heldout import greedy_match, held_out
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.vocab import Vocab

TOY = run.REPOSITORY / run.TOY_MODEL
LENGTH = 128
"""What the records of these tests are padded to, so that one program serves all."""


def pretokenized(config: str, source: str, folder) -> str:
    """A folder of tokens of the committed tokenizer and codebook."""
    names = [f"data.path={folder}", f"data.tokenizer={TOY}", f"vq.path={TOY / 'vq.npz'}", "data.size=64"]
    assert run.main(["pretokenize", str(run.REPOSITORY / config), "--source", source, *names]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> str:
    """Eleven records, no multiple of a batch: pictures of three sizes, short and long captions, dialogs of text."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    lines = []
    for index, size in enumerate([(64, 64)] * 4 + [(128, 32)] * 2 + [(32, 32)] * 3):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        lines.append({"image": f"{index}.png", "caption": " ".join(["a red circle"] * (1 + index % 3))})
    for answers in (["yes"], ["a red circle", "a blue square left of it"]):
        turns = [[("human", "what is there?"), ("gpt", answer)] for answer in answers]
        lines.append({"conversations": [{"from": who, "value": text} for turn in turns for who, text in turn]})
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return pretokenized("configs/own_pictures.py", str(folder / "records.jsonl"), folder / "tokens")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> str:
    """Eight scenes of the embedded world, which the committed model has learned to paint."""
    return pretokenized("configs/toy_stage1.py", "toy:8", tmp_path_factory.mktemp("scenes") / "tokens")


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.load(TOY)


@pytest.fixture(scope="module", params=["trained", "random"])
def model(request) -> Chameleon:
    trained, cfg = load_model(TOY)
    return trained if request.param == "trained" else Chameleon(cfg, nnx.Rngs(7))


@pytest.fixture(scope="module")
def trained() -> Chameleon:
    return load_model(TOY)[0]


@jax.jit
def padded_logits(model, ids):
    return model.logits(model(ids[None]))[0]


def logits(model, ids) -> np.ndarray:
    """f64[n V] of the tokens i32[n] alone; what pads them comes later, which no token sees."""
    padding = np.zeros(LENGTH - len(ids), np.int32)
    return np.asarray(padded_logits(model, np.concatenate([ids, padding])), np.float64)[: len(ids)]


def plain_scores(model, folder: str) -> dict[str, float]:
    """Cross-entropy and accuracy in float64, one record at a time."""
    xents, correct = [], []
    for ids, learn in map(Shards(folder).__getitem__, range(len(Shards(folder)))):
        scores = logits(model, ids[:-1])
        highest = scores.max(axis=1, keepdims=True)
        normaliser = highest[:, 0] + np.log(np.exp(scores - highest).sum(axis=1))
        xents += list((normaliser - scores[np.arange(len(ids) - 1), ids[1:]])[learn[1:]])
        correct += list((scores.argmax(axis=1) == ids[1:])[learn[1:]])
    return {"tokens": len(xents), "xent": float(np.mean(xents)), "accuracy": float(np.mean(correct))}


@jax.jit
def likeliest(model, ids, counts):
    """i32[B]: the likeliest token behind the first ``counts`` i32[B] tokens of each row i32[B T], by the whole model."""
    rows = np.arange(len(ids))
    return model.logits(model(ids))[rows, counts - 1].argmax(axis=-1)


def plain_greedy(model, vocab, folder: str) -> list[float]:
    """The share of each record's first answer that the likeliest tokens, one after another, repeat."""
    shards = Shards(folder)
    records = [shards[index] for index in range(len(shards))]
    starts = np.array([int(np.argmax(learn)) for _, learn in records])
    rows = np.zeros((len(records), LENGTH), np.int32)
    for row, (ids, _), start in zip(rows, records, starts, strict=True):
        row[:start] = ids[:start]
    for step in range(max(len(ids) for ids, _ in records) - starts.min()):
        rows[np.arange(len(rows)), starts + step] = likeliest(model, rows, starts + step)
    shares = []
    for row, (ids, _), start in zip(rows, records, starts, strict=True):
        truth, answer = (list(tokens[start:]) for tokens in (ids, row))
        truth, answer = (tokens[: tokens.index(vocab.end_of_turn)] for tokens in (truth, answer))
        shares.append(sum(a == b for a, b in zip(answer, truth, strict=False)) / len(truth))
    return shares


def test_loss_and_accuracy_are_means_over_every_learned_token(model, vocab, mixed):
    assert held_out(model, vocab, mixed) == pytest.approx(plain_scores(model, mixed), rel=1e-5)


def test_greedy_shares_are_those_of_a_plain_argmax_loop(trained, vocab, scenes):
    shares = plain_greedy(trained, vocab, scenes)
    assert 0 < min(shares) < 1
    result = greedy_match(trained, vocab, scenes)
    exact = sum(share == 1 for share in shares) / len(shares)
    assert result == pytest.approx(dict(records=8, worst=min(shares), mean=np.mean(shares), exact=exact))


def test_greedy_decoding_is_compared_with_the_first_answer_of_a_dialog(trained, vocab, mixed, monkeypatch):
    records = [Shards(mixed)[index] for index in range(len(Shards(mixed)))]

    def repeats_the_truth(model, prompts, key, cfg, vocab):
        """For each prompt the answer of the record that begins with it."""
        answers = []
        for prompt in prompts:
            ids = next(ids for ids, learn in records if int(np.argmax(learn)) == len(prompt) and _begins(ids, prompt))
            rest = ids[len(prompt) :]
            answers.append(rest[: list(rest).index(vocab.end_of_turn)])
        return answers

    monkeypatch.setattr("lumina_jax.evaluate.heldout.generate", repeats_the_truth)
    # Two records may share a prompt, such as that of one caption; then one of them is compared with the other's answer.
    assert greedy_match(trained, vocab, mixed)["exact"] >= 0.5


def _begins(ids, prompt) -> bool:
    return list(ids[: len(prompt)]) == list(prompt)


def test_a_limit_takes_records_spread_over_the_folder(trained, vocab, mixed, monkeypatch):
    asked, read = [], Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, indices: asked.extend(indices) or read(self, indices))
    held_out(trained, vocab, mixed, limit=3)
    assert sorted(asked) == [0, 5, 10]


def test_the_verb_prints_these_numbers(trained, vocab, scenes, capsys):
    assert run.main(["evaluate", "--data", scenes, "--greedy"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "held_out": pytest.approx(held_out(trained, vocab, scenes), rel=1e-6),
        "greedy": pytest.approx(greedy_match(trained, vocab, scenes)),
    }


def test_tokens_of_another_tokenizer_or_image_tokenizer_are_refused(trained, vocab, scenes, tokenizer_path):
    with pytest.raises(InputError, match="was made with the VQ model"):
        held_out(trained, vocab, scenes, vq="another")
    with pytest.raises(InputError, match=r"was made with the tokenizer .* set data.tokenizer"):
        greedy_match(trained, Vocab.load(tokenizer_path), scenes)
