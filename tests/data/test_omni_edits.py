"""MagicBrush and SEED-Data-Edit in their published forms read as dialogs of edits and are packed as by the original."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_parts import noise
from goldens_at import on_goldens
from omni_parts import colours, file_bytes, is_file, packed, photo, reason, write_json, write_lines

from lumina_jax import layout
from lumina_jax.conversation import tokenize
from lumina_jax.data.omni.edits import split
from lumina_jax.data.sources import open_source
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

INSTRUCTIONS = ["Make the sky red.", "Remove the <|image|> sign", "add a dog"]


def tokens_of(source, vocab):
    """(record, grids, tokens, learn) of every good record, with another grid for each picture."""
    for index in range(len(source)):
        try:
            record = source[index]
        except (ValueError, OSError):
            continue
        grids = [np.full((2, 4), number, np.int32) for number in range(len(record.images))]
        yield record, grids, *tokenize(record.turns, grids, vocab)


def check_packing(source, vocab):
    """Tokens and labels equal the original's: the first picture is in the request, all others are learned."""
    checked = 0
    for record, grids, tokens, learn in tokens_of(source, vocab):
        # A symbol in an instruction is text, which the reference packing does not know: compare the others.
        turns = [(human.replace("\ufdd0", ""), answer) for human, answer in record.turns]
        if "\ufdd0" not in "".join(human for human, _ in record.turns):
            want, labels = packed(turns, grids, vocab)
            assert tokens.tolist() == want
            assert np.where(learn, tokens, -100).tolist() == labels
        images = layout.images_in(tokens, vocab)
        assert [int(layout.decode_grid(tokens[image], vocab)[0, 0]) for image in images] == list(range(len(grids)))
        assert [bool(learn[image].all()) for image in images] == [False] + [True] * (len(grids) - 1)
        checked += 1
    assert checked


@on_goldens("packing")
def test_the_reference_packing_equals_the_original_s(goldens):
    vocab = Vocab.load(goldens / "tokenizer" / "hf_tokenizer")
    cases = {case["name"]: case for case in json.loads((goldens / "packing" / "cases.json").read_text())}
    case = cases["multi_turn_multi_image"]
    tokens = np.array(case["train"]["tokens"], np.int32)
    grids = [layout.decode_grid(tokens[image], vocab) for image in layout.images_in(tokens, vocab)]
    messages = [message["value"] for message in case["item"]["conversations"]]
    want = packed(zip(messages[::2], messages[1::2], strict=True), grids, vocab)
    assert want == (case["train"]["tokens"], case["train"]["labels"])


# MagicBrush


def row(image: str, turn: int, before: int, instruction: str | None, after: int, **changed) -> dict:
    """A row of osunlp/MagicBrush; its pictures are noise of the seeds ``before`` and ``after``."""
    pictures = {
        "source_img": {"bytes": file_bytes(noise((32, 32), before)), "path": f"{image}-input.png"},
        "mask_img": {"bytes": file_bytes(noise((32, 32), 99)), "path": f"{image}-mask{turn}.png"},
        "target_img": {"bytes": file_bytes(noise((32, 32), after)), "path": f"{image}-output{turn}.png"},
    }
    return {"img_id": image, "turn_index": turn, **pictures, "instruction": instruction} | changed


SCHEMA = pa.schema(
    [
        ("img_id", pa.string()),
        ("turn_index", pa.int32()),
        *((name, pa.struct([("bytes", pa.binary()), ("path", pa.string())])) for name in ("source_img", "mask_img")),
        ("instruction", pa.string()),
        ("target_img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


@pytest.fixture
def parquet(tmp_path):
    damaged = {"bytes": file_bytes(noise((32, 32), 7))[:99], "path": "broken.png"}
    rows = [
        row("139306", 1, 0, INSTRUCTIONS[0], 1),
        row("139306", 2, 1, INSTRUCTIONS[1], 2),
        row("139306", 3, 2, INSTRUCTIONS[2], 3),
        row("77", 1, 4, "b", 5),
        row("78", 2, 6, "its first turn was taken out", 7),
        row("78", 1, 8, " ", 9),
        row("79", 1, 10, "c", 11, target_img=None),
        row("80", 1, 12, "d", 13, target_img=damaged),
        row("81", 1, 14, None, 15),
    ]
    (tmp_path / "data").mkdir()
    for number, part_rows in enumerate((rows[:2], rows[2:])):  # a session may run over the end of a file
        table = pa.Table.from_pylist(part_rows, SCHEMA)
        pq.write_table(table, tmp_path / "data" / f"train-{number:05d}-of-00002-ab12.parquet", row_group_size=2)
    return f"{tmp_path}/data/train-*.parquet"


def test_magicbrush_from_hugging_face_s_parquet(parquet, vocab):
    source = open_source(f"magicbrush:{parquet}")
    assert len(source) == 7
    session = source[0]
    assert [colours(image).tolist() for image in session.images] == [
        colours(noise((32, 32), n)).tolist() for n in range(4)
    ]
    assert session.turns[0] == (f"{INSTRUCTIONS[0]} {IMAGE_SYMBOL}", IMAGE_SYMBOL) and session.turns[2] == (
        INSTRUCTIONS[2],
        IMAGE_SYMBOL,
    )
    assert "Remove the <|image|> sign" in vocab.decode(tokenize(session.turns, [np.zeros((2, 2), int)] * 4, vocab)[0])
    assert source[2].turns[0][0].startswith("its first turn") and len(source[2].images) == 2
    reasons = {
        3: "the instruction of turn 1 is empty",
        4: "no {bytes, path}",
        5: "broken.png",
        6: "turn 1 is a JSON NoneType",
    }
    for index, why in reasons.items():
        assert why in reason(source, index)
    assert "train-00001-of-00002-ab12.parquet, row 4" in reason(source, 4)
    check_packing(source, vocab)


def test_magicbrush_in_dialogs_of_fewer_turns(parquet, vocab):
    single, double = (open_source(f"magicbrush:{parquet}@turns={turns}") for turns in (1, 2))
    assert (len(single), len(double)) == (9, 8)
    for index in range(3):
        record = single[index]
        assert len(record.turns) == 1 and IMAGE_SYMBOL in record.turns[0][0]
        pictures = [colours(image).tolist() for image in record.images]
        assert pictures == [colours(noise((32, 32), n)).tolist() for n in (index, index + 1)]
    assert [len(double[index].turns) for index in (0, 1)] == [2, 1]
    assert double[1].turns == [(f"{INSTRUCTIONS[2]} {IMAGE_SYMBOL}", IMAGE_SYMBOL)]
    assert len({source.fingerprint for source in (single, double, open_source(f"magicbrush:{parquet}"))}) == 3
    check_packing(single, vocab)
    assert pickle.loads(pickle.dumps(single))[1].turns == single[1].turns


def test_magicbrush_from_the_folders_of_its_test_set(tmp_path, vocab):
    names = ["139306-input.png", "139306-output1.png", "139306-output2.png"]
    for seed, name in enumerate(names):
        photo(tmp_path / "dev" / "images" / "139306" / name, (32, 32), seed)
    turns = [
        {"input": names[0], "mask": "139306-mask1.png", "output": names[1], "instruction": INSTRUCTIONS[0]},
        {"input": names[1], "mask": "139306-mask2.png", "output": names[2], "instruction": INSTRUCTIONS[2]},
    ]
    lost = [{"input": "5-input.png", "mask": "5-mask1.png", "output": "5-output1.png", "instruction": "x"}]
    sessions = {"139306": turns, "5": lost, "6": [], "7": "no list", "8": [{"output": names[1], "instruction": "x"}]}
    write_json(tmp_path / "dev" / "edit_sessions.json", sessions)
    source = open_source(f"magicbrush:{tmp_path}/dev")
    assert len(source) == 5 and [turn[0] for turn in source[0].turns] == [
        f"{INSTRUCTIONS[0]} {IMAGE_SYMBOL}",
        INSTRUCTIONS[2],
    ]
    assert all(
        is_file(image, tmp_path / f"dev/images/139306/{name}")
        for image, name in zip(source[0].images, names, strict=True)
    )
    for index, why in {1: "5/5-input.png: No such file", 2: "no list of at least one", 3: "no list", 4: "None"}.items():
        assert why in reason(source, index)
    assert "edit_sessions.json, image 6" in reason(source, 2)
    check_packing(source, vocab)


# SEED-Data-Edit


@pytest.fixture
def seed_edit(tmp_path):
    real, multi = tmp_path / "real_editing", tmp_path / "multi_turn_editing"
    for seed in range(4):
        photo(real / "images" / "photoshoprequest" / f"{seed}.jpg", (40, 32), seed)
        photo(multi / "images" / "20240330_315P_1323turns" / "Data" / "1" / f"{seed}.png", (40, 32), seed)
    folder = "photoshoprequest"
    lines = [
        {"source_image": f"{folder}/0.jpg", "target_image": f"{folder}/1.jpg", "instruction": INSTRUCTIONS[0]},
        {"source_image": f"{folder}/0.jpg", "target_image": f"{folder}/9.jpg", "instruction": INSTRUCTIONS[0]},
        '{"source_image": "cut',
        {"source_image": f"{folder}/0.jpg", "target_image": f"{folder}/1.jpg"},
        ["no object"],
    ]
    write_lines(real / "annotations" / "split_0001.jsonl", lines[:2])
    write_lines(real / "annotations" / "split_0002.jsonl", lines[2:])
    folder = "20240330_315P_1323turns/Data/1"
    edits = {f"edit_image_{n}": f"{folder}/{n}.png" for n in (1, 2, 3)}
    instructions = {f"instruction_{n}": INSTRUCTIONS[n - 1] for n in (1, 2, 3)}
    session = {"source_image": f"{folder}/0.png"} | instructions | edits
    write_lines(
        multi / "annotations" / "split_0001.jsonl",
        [
            session,
            session | {"edit_image_3": "", "instruction_3": ""},
            session | {"edit_image_2": None},
            {"source_image": "x"},
        ],
    )
    return tmp_path


def test_seed_data_edit_s_real_edits(seed_edit, vocab):
    source = open_source(f"seed-edit:{seed_edit}@subset=real")
    assert len(source) == 5 and source[0].turns == [(f"{INSTRUCTIONS[0]} {IMAGE_SYMBOL}", IMAGE_SYMBOL)]
    paths = [seed_edit / f"real_editing/images/photoshoprequest/{n}.jpg" for n in (0, 1)]
    assert all(is_file(image, path) for image, path in zip(source[0].images, paths, strict=True))
    for index, why in {
        1: "9.jpg: No such file",
        2: "Unterminated",
        3: "turn 1 is a JSON None",
        4: "a JSON list",
    }.items():
        assert why in reason(source, index)
    assert "split_0002.jsonl, line at byte 0" in reason(source, 2)
    check_packing(source, vocab)


def test_seed_data_edit_s_edits_of_several_turns(seed_edit, vocab):
    source = open_source(f"seed-edit:{seed_edit}")
    assert [len(source[index].turns) for index in (0, 1)] == [3, 2] and len(source) == 4
    folder = seed_edit / "multi_turn_editing" / "images" / "20240330_315P_1323turns" / "Data" / "1"
    assert all(is_file(image, folder / f"{number}.png") for number, image in enumerate(source[0].images))
    assert "a picture is None" in reason(source, 2) and "instruction of turn 1" in reason(source, 3)
    single = open_source(f"seed-edit:{seed_edit}@turns=1")
    assert (
        len(single) == 9
        and is_file(single[2].images[0], folder / "2.png")
        and is_file(single[2].images[1], folder / "3.png")
    )
    check_packing(source, vocab)
    check_packing(single, vocab)


def test_splitting_sessions_loses_no_turn():
    session, first, turns = split(np.array([3, 1, 0, 5, 4]), 2)
    assert session.tolist() == [0, 0, 1, 2, 3, 3, 3, 4, 4]
    assert first.tolist() == [0, 2, 0, 0, 0, 2, 4, 0, 2]
    assert turns.tolist() == [2, 1, 1, 0, 2, 2, 1, 2, 2]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("seed-edit:X@subset=auto", "choose real or multi_turn"),
        ("seed-edit:X@turns=some", "give a whole number"),
        ("magicbrush:X@split=dev", "no option 'split'; there are turns"),
        ("magicbrush:@turns=1", "names no path"),
        ("seed-edit:X", "matches no file"),
    ],
)
def test_wrong_options_are_errors_that_name_them(spec, why):
    with pytest.raises((ValueError, OSError), match=why):
        open_source(spec)
