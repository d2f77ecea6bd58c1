"""The image-token rule: crop sizes against the original's, and writer, reader and forced() agreeing with each other."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from goldens_at import on_goldens

from lumina_jax import layout
from lumina_jax.layout import ANY, CODE, SIZE
from lumina_jax.vocab import CHAMELEON, UNI_REP

SMALL_GRIDS = [(2, 2), (2, 8), (8, 2), (4, 6), (6, 4)]


def random_codes(rows, cols, vocab, seed=0):
    return np.random.default_rng(seed).integers(len(vocab.code_ids), size=(rows, cols), dtype=np.int32)


def allowed(token, rule, vocab):
    """Whether ``rule``, a result of forced(), allows ``token``."""
    if rule == CODE:
        return vocab.code_of[token] >= 0
    if rule == SIZE:
        return vocab.size_of[token] > 0
    return rule in (ANY, token)


@on_goldens("crop")
def test_crop_sizes_equal_the_originals_in_order(goldens):
    recorded = json.loads((goldens / "crop" / "crop_size_lists.json").read_text())
    for target, sizes in recorded["lists"].items():
        assert layout.crop_sizes(int(target)) == [tuple(size) for size in sizes]


@on_goldens("crop")
def test_best_crop_equals_the_originals(goldens):
    for case in json.loads((goldens / "crop" / "chosen.json").read_text()):
        for target in (512, 768, 1024):
            chosen = layout.best_crop((case["w"], case["h"]), layout.crop_sizes(target))
            assert chosen == tuple(case[str(target)]["crop"]), (case["w"], case["h"], target)


@pytest.mark.parametrize(
    ("target", "patch", "max_ratio"), [(512, 32, 4.0), (64, 16, 2.0), (100, 32, 4.0), (96, 8, 1.0)]
)
def test_crop_sizes_stay_under_area_and_ratio_and_cannot_grow(target, patch, max_ratio):
    sizes = layout.crop_sizes(target, patch, max_ratio)
    budget = (target // patch) ** 2
    assert sizes and len(set(sizes)) == len(sizes)
    for width, height in ((w // patch, h // patch) for w, h in sizes):
        assert width * height <= budget < (width + 1) * (height + 1)
        assert max(width, height) <= max_ratio * min(width, height)


def test_best_crop_breaks_ties_by_the_larger_tuple():
    assert layout.best_crop((100, 100), [(32, 64), (64, 32)]) == (64, 32)
    assert layout.best_crop((100, 100), [(64, 64), (96, 96), (32, 32)]) == (96, 96)


def test_best_crop_keeps_all_of_an_image_of_a_listed_shape():
    sizes = layout.crop_sizes(256)
    for width, height in sizes:
        chosen = layout.best_crop((3 * width, 3 * height), sizes)
        assert chosen[0] * height == chosen[1] * width


@pytest.mark.parametrize("target", [512, 768, 1024])
def test_decode_inverts_encode_on_every_crop_size(target, vocab):
    for width, height in layout.crop_sizes(target):
        codes = random_codes(height // 16, width // 16, vocab)
        ids = layout.encode_grid(codes, vocab)
        assert len(ids) == layout.grid_tokens(*codes.shape) and ids.dtype == np.int32
        assert (layout.decode_grid(ids, vocab) == codes).all()


@pytest.mark.smoke
@pytest.mark.parametrize(("rows", "cols"), SMALL_GRIDS)
def test_encode_writes_height_first_and_a_newline_after_every_row(rows, cols, vocab):
    codes = random_codes(rows, cols, vocab)
    ids = layout.encode_grid(codes, vocab)
    lines = ids[3:-1].reshape(rows, cols + 1)
    assert list(ids[:3]) == [vocab.boi, vocab.size_id(rows // 2), vocab.size_id(cols // 2)] and ids[-1] == vocab.eoi
    assert (lines[:, -1] == vocab.newline).all() and (lines[:, :-1] == vocab.code_ids[codes]).all()
    assert (layout.decode_grid(ids, vocab) == codes).all()


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (0, 2), (4,), (2, 2, 2)])
def test_encode_refuses_shapes_without_a_size_token(shape, vocab):
    with pytest.raises(ValueError, match="even"):
        layout.encode_grid(np.zeros(shape, np.int32), vocab)


@pytest.mark.parametrize("code", [-1, 8192])
def test_encode_refuses_codes_without_a_token(code, vocab):
    with pytest.raises(ValueError, match=f"{code}.*8191"):
        layout.encode_grid(np.array([[0, code], [0, 0]]), vocab)


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (2, 6), (4, 2)])
def test_forced_accepts_what_encode_writes_and_refuses_every_corruption(rows, cols, vocab):
    ids = layout.encode_grid(random_codes(rows, cols, vocab), vocab)
    rules = np.asarray(layout.forced(np.arange(len(ids) - 1), rows, cols, vocab))
    assert all(allowed(token, rule, vocab) for token, rule in zip(ids[1:], rules, strict=True))
    kinds = [vocab.code_ids[7], vocab.newline, vocab.eoi, vocab.boi, vocab.size_id(1), vocab.size_id(9), vocab.bos]
    for index, wrong in itertools.product(range(1, len(ids)), kinds):
        right = wrong == ids[index] or (vocab.code_of[wrong] >= 0 and vocab.code_of[ids[index]] >= 0)
        assert allowed(wrong, rules[index - 1], vocab) == right
        if not right:
            corrupt = ids.copy()
            corrupt[index] = wrong
            # Another size token is allowed by itself; it changes the expected length.
            message = f"token {index} of the image is {wrong}," if index > 2 else rf"token {wrong},|takes \d+ tokens"
            with pytest.raises(ValueError, match=message):
                layout.decode_grid(corrupt, vocab)
    with pytest.raises(ValueError, match="not an image"):
        layout.decode_grid(np.concatenate([[vocab.eoi], ids[1:]]), vocab)


def test_forced_allows_any_token_outside_an_image(vocab):
    outside = layout.forced(np.array([-5, -1, layout.grid_tokens(2, 4) - 1, 1000]), 2, 4, vocab)
    assert (np.asarray(outside) == ANY).all()


def test_forced_leaves_unknown_sizes_free_among_size_tokens(vocab):
    assert list(np.asarray(layout.forced(np.arange(4), 0, 0, vocab))) == [SIZE, SIZE, ANY, ANY]


def test_forced_treats_every_row_of_a_batch_by_its_own_size(vocab):
    n, rows, cols = np.array([-1, 0, 1, 4, 7, 2, 0]), np.array([2, 4, 4, 2, 2, 4, 0]), np.array([2, 6, 6, 2, 2, 6, 0])
    together = np.asarray(layout.forced(n, rows, cols, vocab))
    assert list(together) == [ANY, vocab.size_id(2), vocab.size_id(3), vocab.newline, vocab.newline, CODE, SIZE]
    single = [int(layout.forced(*row, vocab)) for row in zip(n, rows, cols, strict=True)]
    assert list(together) == single


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 10])
def test_decode_refuses_a_shortened_image(cut, vocab):
    ids = layout.encode_grid(random_codes(4, 4, vocab), vocab)
    with pytest.raises(ValueError, match=r"image"):
        layout.decode_grid(ids[:cut], vocab)
    with pytest.raises(ValueError, match="takes 24 tokens, but has 25"):
        layout.decode_grid(np.append(ids, vocab.eoi), vocab)


@pytest.mark.parametrize("alien", [-1, 10**6])
def test_decode_refuses_ids_the_tokenizer_does_not_know(alien, vocab):
    ids = layout.encode_grid(random_codes(2, 2, vocab), vocab)
    for index in range(1, len(ids)):
        corrupt = ids.copy()
        corrupt[index] = alien
        with pytest.raises(ValueError, match=str(alien)):
            layout.decode_grid(corrupt, vocab)


def test_images_in_finds_whole_images_in_order_and_always_ends(vocab):
    image, text = layout.encode_grid(random_codes(2, 4, vocab), vocab), np.array([20000, 20001])
    n, boi, eoi = len(image), [vocab.boi], [vocab.eoi]

    def spans(*pieces):
        return [(s.start, s.stop) for s in layout.images_in(np.concatenate([*pieces, []]).astype(np.int32), vocab)]

    assert spans() == spans(text) == spans(text, boi) == spans(eoi, text) == spans(boi) == spans(boi, boi) == []
    assert spans(image, text, image) == [(0, n), (n + 2, 2 * n + 2)]
    assert spans(image, text, boi) == spans(image, eoi) == spans(image, image[:-1]) == [(0, n)]
    assert spans(boi, text, image) == [(3, 3 + n)]
    assert spans(boi, eoi) == [(0, 2)]


@pytest.fixture(scope="module")
def chameleon(vocab):
    """The tokens of a model whose images all have 3 x 5 codes."""
    return vocab.with_images(replace(CHAMELEON, shape=(3, 5)))


def test_chameleon_writes_the_codes_between_begin_and_end_alone(vocab):
    chameleon = vocab.with_images(CHAMELEON)
    codes = random_codes(32, 32, vocab)
    ids = layout.encode_grid(codes, chameleon)
    assert ids.tolist() == [vocab.boi, *vocab.code_ids[codes.ravel()], vocab.eoi]
    assert len(ids) == layout.grid_tokens(32, 32, CHAMELEON) == 1026 and layout.grid_tokens(32, 32) == 1060
    assert (layout.decode_grid(ids, chameleon) == codes).all()
    assert layout.column_of(64 + 7, 32, CHAMELEON) == 7 and layout.column_of(66 + 32, 32, UNI_REP) == 32


def test_chameleon_s_rule_accepts_what_is_written_and_refuses_every_corruption(chameleon):
    ids = layout.encode_grid(random_codes(3, 5, chameleon), chameleon)
    rules = np.asarray(layout.forced(np.arange(len(ids) + 1), 3, 5, chameleon))
    assert rules.tolist() == [CODE] * 15 + [chameleon.eoi, ANY, ANY]
    for index, wrong in itertools.product(range(1, len(ids)), [chameleon.newline, chameleon.boi, chameleon.size_id(1)]):
        corrupt = ids.copy()
        corrupt[index] = wrong
        with pytest.raises(ValueError, match=f"token {index} of the image is {wrong},"):
            layout.decode_grid(corrupt, chameleon)
    for cut in (ids[:0], ids[:1], ids[:-1], np.append(ids, chameleon.eoi)):
        with pytest.raises(ValueError, match="image"):
            layout.decode_grid(cut, chameleon)
    for codes in (np.zeros((5, 3), int), np.zeros((4, 6), int), np.zeros(15, int)):
        with pytest.raises(ValueError, match="every image of the layout 'chameleon' has 3 x 5 codes"):
            layout.encode_grid(codes, chameleon)


def test_lines_of_an_unfinished_chameleon_image_are_read_when_complete(chameleon):
    codes = random_codes(3, 5, chameleon)
    ids = layout.encode_grid(codes, chameleon)
    for count in range(len(ids)):
        lines, rows = layout.decode_lines(ids[:count], chameleon)
        assert (rows, len(lines)) == ((0, 0) if count < 1 else (3, (count - 1) // 5))
        assert len(lines) == 0 or (lines == codes[: len(lines)]).all()


def test_one_tokenizer_with_two_layouts_is_two_vocabularies_and_one_fingerprint(vocab, chameleon):
    assert chameleon != vocab and chameleon.with_images(UNI_REP) == vocab and hash(chameleon) != hash(vocab)
    assert chameleon.fingerprint == vocab.fingerprint


def test_a_model_that_paints_nothing_is_named_with_the_reason(vocab):
    layout.check_paints(vocab)
    with pytest.raises(ValueError, match=r"paints no pictures: its head is zero.*--task describe"):
        layout.check_paints(vocab.with_images(replace(CHAMELEON, no_pictures="its head is zero")))
