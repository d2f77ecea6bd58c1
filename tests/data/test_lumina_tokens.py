"""Laws of the original's token files: they go through pretokenize and back unchanged, and what cannot be right is rejected."""

import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_parts import CODES, CONFIG, STRIDE, tiny_vocab, tiny_vq
from goldens_at import on_goldens
from test_restricted_pickle import Evil

import run
from lumina_jax import layout
from lumina_jax.conversation import tokenize
from lumina_jax.data.export_tokens import export_tokens
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.ready_tokens import check_sample
from lumina_jax.data.shards import Shards
from lumina_jax.data.sources import open_records, open_source
from lumina_jax.data.sources.relocate import Relocation
from lumina_jax.data.sources.token_record import to_record
from lumina_jax.errors import ExistingFileError, InputError, MissingFileError, SourceError
from lumina_jax.model.image_tokenizer import fingerprint
from lumina_jax.vocab import Vocab

VOCAB, VQ = tiny_vocab(), tiny_vq()
MANY = 1000
SPLITS = 4

Sample = tuple[list[int], list[int]]
"""Tokens and labels, as the original keeps them."""


def sample(number: int) -> Sample:
    """A text, a picture to be painted, or a question about a picture."""
    rng = np.random.default_rng(number)
    grid = rng.integers(0, CODES, rng.choice([2, 4], 2))
    turns = [
        [(f"question {number}", "an answer")],
        [(f"paint {number}", "<|image|>")],
        [(f"what is <|image|> of {number}", "that"), ("sure?", "yes")],
    ][number % 3]
    tokens, learn = tokenize(turns, [grid] if number % 3 else [], VOCAB)
    return tokens.tolist(), np.where(learn, tokens, -100).tolist()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [sample(number) for number in range(MANY)]


def write_original(folder: Path, samples: Sequence[Sample], first: int = 0) -> Path:
    """Writes files as pre_tokenize.py and concat_record.py do; returns the path of record.json."""
    (folder / "files").mkdir(parents=True)
    records, share = [], -(-len(samples) // SPLITS)
    for number, (tokens, labels) in enumerate(samples):
        path = folder / "files" / f"{number}.pkl"
        with open(path, "wb") as file:
            pickle.dump({"token": tokens, "label": labels, "id": first + number}, file, protocol=4)
        records.append({"file": str(path), "len": len(tokens), "id": first + number})
        with open(folder / f"{number // share}-of-{SPLITS}-record.jsonl", "a") as part:
            part.write(json.dumps(records[-1]) + "\n")
    (folder / "record.json").write_text(json.dumps(records))
    return folder / "record.json"


def tokens_of(spec: str, out: Path, **changes):
    """The folder of tokens that a source becomes."""
    arguments = dict(cfg=CONFIG, seed=5, shard_records=300, max_tokens=161, progress=False) | changes
    pretokenize(open_source(spec), VQ, VOCAB, out, **arguments)
    return Shards(out, may_be_empty=True)


def same(source, samples: Sequence[Sample]) -> bool:
    read = [source[index] for index in range(len(source))]
    return [(r.tokens.tolist(), np.where(r.learn, r.tokens, -100).tolist()) for r in read] == list(samples)


def rejects(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def written(samples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "out"
    write_original(folder, samples)
    return folder


@pytest.fixture(scope="module")
def shards(written, tmp_path_factory) -> Shards:
    return tokens_of(f"lumina-tokens:{written}/record.json", tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def exported(shards, tmp_path_factory) -> Path:
    return export_tokens(shards, tmp_path_factory.mktemp("exported"), progress=False)


@pytest.mark.smoke
def test_a_thousand_samples_become_the_same_tokens(samples, shards):
    assert len(shards) == MANY and shards.manifest.rejected == 0
    for (tokens, labels), (ours, learn) in zip(samples, map(shards.__getitem__, range(MANY)), strict=True):
        assert ours.tolist() == tokens and np.where(learn, ours, -100).tolist() == labels
    assert shards.manifest.kinds == {"text": 334, "text to image": 333, "image to text": 333}
    assert sum(shards.manifest.crops.values()) == 666 and f"{4 * STRIDE}x{2 * STRIDE}" in shards.manifest.crops
    made_with = shards.manifest.settings
    assert made_with.vq_assumed and made_with.vq == fingerprint(VQ) and made_with.tokenizer == VOCAB.fingerprint


def test_a_thousand_samples_go_back(samples, shards, exported, tmp_path):
    records = json.loads(exported.read_text())
    assert [record["id"] for record in records] == list(range(MANY))
    for record, (tokens, labels) in zip(records, samples, strict=True):  # as finetune_solver.py reads them
        content = Path(record["file"]).read_bytes()
        assert pickle.loads(content) == {"token": tokens, "label": labels, "id": record["id"]}
        assert record["len"] == len(tokens)
    again = tokens_of(f"lumina-tokens:{exported}", tmp_path / "again")
    for file in shards.path.glob("*.tokens"):
        assert (again.path / file.name).read_bytes() == file.read_bytes()


def test_exported_pickles_are_those_of_the_original(written, shards, exported):
    for number in (0, 1, 2, MANY - 1):
        ours = exported.parent / "files" / "000000" / f"{number}.pkl"
        assert ours.read_bytes() == (written / "files" / f"{number}.pkl").read_bytes()
    with pytest.raises(ExistingFileError, match="exists already"):
        export_tokens(shards, exported.parent, progress=False)
    with pytest.raises(ExistingFileError, match=r"pretokenize wrote"):
        export_tokens(shards, shards.path, progress=False)


def test_every_way_to_name_them_reads_the_same_samples(samples, written, tmp_path):
    few, listed = samples[:20], json.loads((written / "record.json").read_text())[:20]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in listed))
    inside = [{"token": tokens, "label": labels} for tokens, labels in few]
    (tmp_path / "inside.json").write_text(json.dumps(inside))
    for name in ("few.jsonl", "inside.json"):
        assert same(open_source(f"lumina-tokens:{tmp_path / name}"), few)
    for spec in (written, f"{written}/{{0..{SPLITS - 1}}}-of-{SPLITS}-record.jsonl", f"{written}/*-of-*-record.jsonl"):
        source = open_source(f"lumina-tokens:{spec}")
        assert len(source) == MANY and source[MANY - 1].tokens.tolist() == samples[-1][0]
    restored = pickle.loads(pickle.dumps(source))
    assert restored.fingerprint == source.fingerprint and restored[3].tokens.tolist() == samples[3][0]
    with pytest.raises(IndexError):
        source[MANY]


def test_the_lists_of_a_folder_are_joined_by_rank(samples, tmp_path):
    record = write_original(tmp_path / "a", samples[:3])
    entries = json.loads(record.read_text())
    for path in (tmp_path / "a").glob("*-record.jsonl"):
        path.unlink()
    assert same(open_source(f"lumina-tokens:{tmp_path}/a"), samples[:3])  # record.json alone
    for rank, entry in ((2, entries[0]), (10, entries[1])):
        (tmp_path / "a" / f"{rank}-of-16-record.jsonl").write_text(json.dumps(entry) + "\n")
    assert same(open_source(f"lumina-tokens:{tmp_path}/a"), samples[:2])
    (tmp_path / "a" / "0-of-8-record.jsonl").write_text("")
    with pytest.raises(InputError, match="of 8 and of 16 processes"):
        open_source(f"lumina-tokens:{tmp_path}/a")


@pytest.mark.parametrize("spec", ["missing.json", "missing", "a.txt", "a.pkl", "empty"])
def test_what_is_no_list_of_records_is_refused_at_the_door(spec, tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.pkl").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, MissingFileError)):
        open_source(f"lumina-tokens:{tmp_path}/{spec}")


GRID = layout.encode_grid(np.arange(4).reshape(2, 2), VOCAB).tolist()
BOS, END = VOCAB.bos, VOCAB.end_of_turn


def of_tokens(*tokens: int) -> dict:
    """A sample that is learned from its second token on."""
    return {"token": list(tokens), "label": [-100, *tokens[1:]]}


BAD: list[tuple[object, str]] = [
    (of_tokens(BOS, *GRID[:-1], END), "token 1 is .* stands in no complete one"),
    (of_tokens(BOS, *GRID[1:], END), "belongs into an image"),
    (of_tokens(BOS, GRID[3], END), "belongs into an image"),
    (of_tokens(BOS, *GRID, VOCAB.eoi, END), "belongs into an image"),
    (of_tokens(BOS, *GRID[:5], *GRID[6:], END), "the image at token 1: .* 2 x 2 codes"),
    (of_tokens(BOS, GRID[0], END, *GRID[2:], END), "the height of the image is token"),
    (of_tokens(BOS, VOCAB.image_symbol, END), "an image symbol stands"),
    (of_tokens(BOS, len(VOCAB), END), f"token {len(VOCAB)}, but tiny has tokens up to {len(VOCAB) - 1}"),
    (of_tokens(5, END), "begins with token 5, not with"),
    (of_tokens(BOS, *[7] * 200, END), "takes 202 tokens, and at most 161"),
    (of_tokens(BOS, 2**31, END), "numbers from 0 to 2147483648|numbers from .* to 2147483648"),
    (of_tokens(BOS, -3, END), "numbers from -3"),
    ({"token": [BOS, 7, END], "label": [-100] * 3}, "nothing in the record is learned"),
    ({"token": [BOS, 7, END], "label": [BOS, -100, -100]}, "nothing in the record is learned"),
    ({"token": [BOS, 7, END], "label": [-100, 8, END]}, "label 1 is 8, its token 7"),
    ({"token": [BOS, 7, END], "label": [-100, -1, END]}, "label 1 is -1"),
    ({"token": [BOS, 7, END], "label": [-100, 7]}, "3 tokens, but 2 labels"),
    ({"token": [BOS, "7", END], "label": [-100, 7, END]}, "'token' is .*, not a list of integers"),
    ({"token": [], "label": []}, "an empty list"),
    ({"token": [BOS, 7, END]}, "'label' is None"),
    ([1, 2], "the pickle is a list, not a dict"),
    (of_tokens(BOS, 7, END) | {"id": 99}, "the file is sample 99, its list says"),
    (of_tokens(BOS, 7, END) | {"token": [Evil()]}, "names b'(posix|os).system'"),
    (of_tokens(BOS, 7, END) | {"token": np.array([BOS, 7, END])}, r"numpy.*tolist\(\)"),
]


def test_bad_samples_are_rejected_with_their_reasons_and_good_ones_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = of_tokens(BOS, *GRID, END)
    (tmp_path / "files").mkdir()
    entries: list[object] = []
    for number, value in enumerate([*(value for value, _ in BAD), good]):
        (tmp_path / "files" / f"{number}.pkl").write_bytes(pickle.dumps(value))
        entries.append({"file": f"/gone/files/{number}.pkl", "id": number})
    files = len(entries)
    (tmp_path / "files" / "cut.pkl").write_bytes(pickle.dumps(good)[:-20])
    with open(tmp_path / "files" / "large.pkl", "wb") as file:
        file.truncate(1 << 33)
    entries += [
        {"file": "/gone/files/7000.pkl"},
        {"file": "/gone/files/cut.pkl"},
        {"file": "/gone/files/large.pkl"},
        {"file": f"/gone/files/{files - 1}.pkl", "len": 3},
        {"file": 5},
        {"conversations": []},
        "text",
        good,
    ]
    reasons = [reason for _, reason in BAD]
    reasons += [
        "7000.pkl is not there, and neither is .*copy",
        "cut short",
        "more than 8,388,608 bytes",
        "tokens, its list says 3",
        "path of a file is 5",
    ]
    reasons += ["neither 'file' nor 'token' and 'label', only", "a JSON str, not an object"]
    (tmp_path / "record.json").write_text(json.dumps(entries))
    shards = tokens_of("lumina-tokens:record.json", tmp_path / "tokens")
    assert not (tmp_path / "ran").exists()
    listed = rejects(tmp_path / "tokens")
    assert [line["index"] for line in listed] == [*range(len(BAD)), *range(files, len(entries) - 1)]
    for line, reason in zip(listed, reasons, strict=True):
        assert re.search(reason, line["reason"])
        assert line["cause"]
    assert len(shards) == 2 and shards[0][0].tolist() == shards[1][0].tolist() == good["token"]


def test_codes_that_the_given_vq_lacks_are_rejected():
    record = to_record(of_tokens(BOS, *GRID, END))
    assert check_sample(record, VOCAB, 4, STRIDE).sizes == [(2 * STRIDE, 2 * STRIDE)]
    with pytest.raises(InputError, match="image code 3, but the VQ model has 3 codes"):
        check_sample(record, VOCAB, 3, STRIDE)


def test_many_missing_files_in_a_row_end_the_run(tmp_path):
    entries = [{"file": f"/gone/{number}.pkl", "len": 3, "id": number} for number in range(20)]
    (tmp_path / "record.json").write_text(json.dumps(entries))
    with pytest.raises(SourceError, match="a file that the list names is missing"):
        tokens_of(f"lumina-tokens:{tmp_path}/record.json", tmp_path / "tokens", max_consecutive_rejects=10)


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))


def test_a_file_is_found_as_it_is_written_else_by_the_longest_end_of_its_path(tmp_path, monkeypatch):
    given, moved = tmp_path / "a" / "out" / "files" / "7.pkl", tmp_path / "moved"
    ends = [
        moved / end for end in (str(given).lstrip("/"), "a/out/files/7.pkl", "out/files/7.pkl", "files/7.pkl", "7.pkl")
    ]
    put(given, *ends)
    for place in [given, *ends]:
        found, content = Relocation(str(moved)).read(str(given), 1000)
        assert (found, content) == (str(place), str(place).encode())
        assert Relocation(str(moved)).find(str(given)) == str(place)
        place.unlink()
    with pytest.raises(MissingFileError, match=r"a/out/files/7\.pkl is not there, and neither is .*/moved/7\.pkl"):
        Relocation(str(moved)).find(str(given))
    put(moved / "files" / "8.pkl")
    monkeypatch.chdir(moved)
    assert Relocation(str(tmp_path)).find("files/8.pkl") == "files/8.pkl"
    for wrong in (None, 7, "", "files/", ["a"]):
        with pytest.raises(InputError, match="the path of a file is"):
            Relocation(str(moved)).find(wrong)
    with pytest.raises(MissingFileError):
        Relocation(str(moved)).find("a\0b" + "/x" * 5000)


def test_files_of_one_folder_that_lie_in_two_places_are_all_found(tmp_path):
    put(tmp_path / "out" / "files" / "1.pkl", tmp_path / "files" / "2.pkl", tmp_path / "3.pkl")
    places = Relocation(str(tmp_path))
    for number, place in ((1, "out/files/1.pkl"), (2, "files/2.pkl"), (3, "3.pkl"), (1, "out/files/1.pkl")):
        assert places.read(f"/data/out/files/{number}.pkl", 1000)[0] == str(tmp_path / place)


def test_token_files_of_a_store_are_found_there(samples):
    store = fsspec.filesystem("memory")
    entries = []
    for number, (tokens, labels) in enumerate(samples[:6]):
        content = pickle.dumps({"token": tokens, "label": labels, "id": number})
        store.pipe(f"/lumina-tokens/out/files/{number}.pkl", content)
        entries.append({"file": f"/data/lumina/out/files/{number}.pkl", "len": len(tokens), "id": number})
    store.pipe("/lumina-tokens/out/record.json", json.dumps(entries).encode())
    store.pipe("/lumina-tokens/data.yaml", b"META:\n  - path: /data/lumina/out/record.json\n")
    try:
        for spec in ("out/record.json", "data.yaml", "out"):
            assert same(open_source(f"lumina-tokens:memory://lumina-tokens/{spec}"), samples[:6])
    finally:
        store.rm("/lumina-tokens", recursive=True)


@pytest.fixture
def config(samples, tmp_path) -> Callable[[str], str]:
    """Writes META of the given text beside three lists of 30, 10 and 7 samples, and returns the spec of it."""
    for name, part in (("a", samples[:30]), ("b", samples[30:40]), ("c", samples[40:47])):
        write_original(tmp_path / name, part)

    def write(meta: str) -> str:
        (tmp_path / "data.yaml").write_text(f"META:\n{meta}")
        return f"lumina-tokens:{tmp_path}/data.yaml"

    return write


def test_a_data_configuration_joins_its_lists(config, samples):
    everything = config(
        "  - path: a/record.json\n  - {path: 'b/record.json', type: text}\n  - path: /old/c/record.json\n"
    )
    assert same(open_source(everything), samples[:47])
    assert same(open_source(f"{everything}@type=text"), samples[30:40])
    assert same(open_source(f"{everything}@type=default,seed=3"), [*samples[:30], *samples[40:47]])
    assert open_source(everything).fingerprint != open_source(f"{everything}@type=text").fingerprint
    with pytest.raises(InputError, match=r"no entry of type 'texts'; there are default, text"):
        open_source(f"{everything}@type=texts")


def test_a_ratio_draws_its_share_once_by_the_seed(config, samples):
    spec = config(
        "  - path: a/record.json\n    ratio: 0.45\n  - path: b/record.json\n  - {path: c/record.json, ratio: 0}\n"
    )
    source = open_source(spec)
    numbers = [
        samples.index((r.tokens.tolist(), np.where(r.learn, r.tokens, -100).tolist()))
        for r in map(source.__getitem__, range(len(source)))
    ]
    drawn = numbers[: int(30 * 0.45)]
    assert (
        len(source) == 13 + 10 and drawn == sorted(set(drawn)) and max(drawn) < 30 and numbers[13:] == [*range(30, 40)]
    )
    assert open_source(spec).fingerprint == source.fingerprint == open_source(f"{spec}@seed=0").fingerprint
    assert open_source(f"{spec}@seed=1").fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ("  - path: a/record.json\n    ratio: 1.5\n", r"entry 0 of META has the ratio 1\.5; .*data\.weights"),
        *(
            (f"  - {{path: a/record.json, ratio: {ratio}}}\n", "share from 0 to 1")
            for ratio in ("-1", ".nan", "true", "'1'", "1e-1")
        ),
        ("  - path: a/record.json\n    ration: 0.5\n", "has 'ration'; there are path, ratio and type"),
        ("  - ratio: 0.5\n", "it needs a path"),
        ("  - a/record.json\n", "it needs a path"),
        ("  - path: a/files/0.pkl\n", "a list of records ends with .json"),
        ("  a: 1\n", "no list under META"),
        ("", "no list under META"),
        ("  - path: [\n", "no YAML"),
        ("[" * 1500, "no YAML"),
        ("  - !!python/object/apply:os.system ['touch ran']\n", "no YAML"),
        ("  - path: a/record.json\n" + " " * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_a_wrong_data_configuration_is_refused_at_the_door(config, meta, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        open_source(config(meta))
    assert not Path("ran").exists()


def test_a_list_that_a_data_configuration_names_must_be_there(config):
    with pytest.raises(MissingFileError, match=r"/gone/d/record\.json is not there"):
        open_source(config("  - path: /gone/d/record.json\n"))


def test_options_without_a_data_configuration_are_refused(written):
    with pytest.raises(InputError, match=r"about a \.yaml file"):
        open_source(f"lumina-tokens:{written}/record.json@seed=1")


def test_what_needs_pictures_refuses_ready_tokens(written, tmp_path, capsys):
    spec = f"lumina-tokens:{written}/record.json"
    with pytest.raises(InputError, match="ready tokens, no words and pictures"):
        open_records(spec)
    to = ["pretokenize", "configs/toy_stage1.py", "--source", spec, f"data.path={tmp_path}/tokens"]
    for option in (["--fit"], ["--sizes", "64,96"]):
        assert run.main([*to, *option]) != 0
        assert f"{option[0]} needs pictures, but {spec} holds ready tokens; leave it out" in capsys.readouterr().err


@on_goldens("packing")
def test_samples_that_the_original_made_are_kept_as_they_are(goldens):
    vocab = Vocab.load(goldens / "tokenizer" / "hf_tokenizer")
    for case in json.loads((goldens / "packing" / "cases.json").read_text()):
        if "tokens" not in case.get("train", {}):
            continue
        tokens, labels = case["train"]["tokens"], case["train"]["labels"]
        checked = check_sample(to_record({"token": tokens, "label": labels}), vocab, len(vocab.code_ids), 16)
        assert checked.tokens.tolist() == tokens and np.where(checked.learn, checked.tokens, -100).tolist() == labels
        assert len(checked.sizes) == tokens.count(vocab.boi)
