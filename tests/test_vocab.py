"""The vocabulary equals the original's tokenizer; and its laws."""

import json
import shutil

import numpy as np
import pytest
from goldens_at import on_goldens
from project_sources import REPO
from tokenizers import AddedToken, Tokenizer, models

from lumina_jax import vocab as names
from lumina_jax.conversation import image_prompt, task_prompt
from lumina_jax.vocab import Vocab

LAYOUTS = ("hf_tokenizer", "meta_tokenizer")


@pytest.mark.parametrize("layout", LAYOUTS)
@on_goldens("tokenizer")
def test_text_and_ids_equal_the_originals(goldens, layout):
    vocab = Vocab.load(goldens / "tokenizer" / layout)
    for case in json.loads((goldens / "tokenizer" / "encode.json").read_text()):
        assert vocab.encode(case["text"]) == case["ids"]
        assert vocab.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize("layout", LAYOUTS)
@on_goldens("tokenizer")
def test_the_ids_of_the_published_layout(goldens, layout):
    vocab = Vocab.load(goldens / "tokenizer" / layout)
    assert (vocab.bos, vocab.eoi, vocab.boi, vocab.end_of_turn, vocab.newline) == (0, 8196, 8197, 8710, 8803)
    assert vocab.image_symbol == 65536 and len(vocab) == 65537
    assert (vocab.code_ids == np.arange(4, 8196)).all()
    assert vocab.size_id(16) == 8820 and vocab.size_of[8820] == 16


@pytest.mark.smoke
def test_codes_and_sizes_invert(vocab):
    assert (vocab.code_of[vocab.code_ids] == np.arange(len(vocab.code_ids))).all()
    assert (vocab.code_of >= 0).sum() == len(vocab.code_ids)
    sized = np.flatnonzero(vocab.size_of > 0)
    assert [vocab.size_id(units) for units in vocab.size_of[sized]] == list(sized)
    assert vocab.id_of(names.image_code_name(8191)) == vocab.code_ids[8191]
    assert names.image_code_name(120) == "IMGIMGBCAZ" and names.size_name(7) == "<reserved08807>"


def test_the_image_symbol_is_found_by_name_where_the_file_has_it(tokenizer_path):
    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    tokenizer.add_tokens(["one more", AddedToken(names.IMAGE_SYMBOL, special=True, normalized=False)])
    vocab = Vocab(tokenizer)
    assert vocab.image_symbol == 65537 and vocab.encode("a<|image|>b")[1] == 65537


@pytest.mark.parametrize("folder", [".", "tokenizer", "original_tokenizers"])
@pytest.mark.parametrize("file", ["tokenizer.json", "text_tokenizer.json"])
def test_load_finds_the_file_in_a_checkpoint_folder(vocab, tokenizer_path, tmp_path, folder, file):
    (tmp_path / folder).mkdir(exist_ok=True)
    shutil.copyfile(tokenizer_path / "tokenizer.json", tmp_path / folder / file)
    for path in (tmp_path, tmp_path / folder / file, str(tmp_path)):
        assert Vocab.load(path).fingerprint == vocab.fingerprint


def test_fingerprints_of_different_tokenizers_differ(vocab, tokenizer_path):
    other = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    other.add_tokens(["one more"])
    assert Vocab(other).fingerprint != vocab.fingerprint and len(vocab.fingerprint) == 16


def test_load_names_the_paths_it_tried(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Vocab.load(tmp_path)
    assert str(tmp_path / "original_tokenizers" / "text_tokenizer.json") in str(error.value)


def test_load_refuses_other_files(tmp_path):
    broken, foreign = tmp_path / "broken.json", tmp_path / "foreign.json"
    broken.write_text("{}")
    Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>")).save(str(foreign))
    with pytest.raises(ValueError, match=r"broken\.json is not a tokenizers JSON file"):
        Vocab.load(broken)
    with pytest.raises(ValueError, match=r"foreign\.json has no token '<racm3:break>'"):
        Vocab.load(foreign)


def test_a_size_without_a_token_is_refused_by_its_limit(vocab):
    largest = int(vocab.size_of.max())
    with pytest.raises(ValueError, match=f"{largest + 1} size units.*1 to {largest}"):
        vocab.size_id(largest + 1)


def test_words_that_a_tokenizer_of_words_spells_are_named(tmp_path):
    toy = Vocab.load(REPO / "assets/toy")
    for prompt, words in (
        ("A lighthouse at dusk, a red circle.", ["lighthouse", "dusk"]),
        ("ein roter Kreis", ["ein", "roter", "Kreis"]),
    ):
        assert toy.spelt_words(toy.encode(image_prompt(128, 96, prompt))) == words
    assert toy.spelt_words(toy.encode("\n猫 a 7 x 9, b.")) == ["猫"]
    for request in (
        image_prompt(64, 64, "a small red circle left of a large blue square on white"),
        task_prompt("depth", "", 1),
    ):
        assert toy.spelt_words(toy.encode(request)) == []


@on_goldens("tokenizer")
def test_a_tokenizer_that_joins_bytes_knows_every_word(goldens):
    vocab = Vocab.load(goldens / "tokenizer" / LAYOUTS[0])
    assert vocab.spelt_words(vocab.encode("Ωκεανός 猫 zzyzx")) == []
