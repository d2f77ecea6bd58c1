"""Laws of packing: every record in a row that holds it, rows as full as can be, whole batches."""

import numpy as np
import pytest

from lumina_jax.data.packing import Pattern, pack, whole_batches

BUCKETS = (10, 20, 40)


def counts(lengths) -> np.ndarray:
    return np.bincount(lengths, minlength=BUCKETS[-1] + 1)


def packed(patterns: list[Pattern]) -> np.ndarray:
    """How many records of each length the rows hold."""
    records = np.zeros(BUCKETS[-1] + 1, int)
    for pattern in patterns:
        for length in pattern.lengths:
            records[length] += pattern.rows
    return records


def positions(patterns: list[Pattern]) -> int:
    return sum(pattern.rows * BUCKETS[pattern.bucket] for pattern in patterns)


@pytest.mark.smoke
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_every_record_is_in_one_row_that_holds_it(packing, seed):
    rng = np.random.default_rng(seed)
    records = counts(rng.integers(1, rng.integers(2, 42), rng.integers(1, 500)))
    patterns = pack(records, BUCKETS, packing)
    assert (packed(patterns) == records).all()
    assert all(sum(pattern.lengths) <= BUCKETS[pattern.bucket] and pattern.rows > 0 for pattern in patterns)
    assert packing or all(len(p.lengths) == 1 and p.lengths[0] > (0, *BUCKETS)[p.bucket] for p in patterns)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([40, 20, 20, 10], {(40,): 1, (20,): 2, (10,): 1}),  # full rows of their own: the shortest bucket wins
        ([7, 3] * 5, {(7, 3): 5}),
        ([25, 9, 8, 7, 5], {(25, 8, 7): 1, (9,): 1, (5,): 1}),  # two fill 15, though 9 fits as well
        ([13, 13, 13, 1], {(13, 13, 13, 1): 1}),
        ([30, 6, 6], {(30, 6): 1, (6,): 1}),
        ([30, 5, 5, 5], {(30, 5, 5): 1, (5,): 1}),
    ],
)
def test_rows_are_as_full_as_can_be(lengths, rows):
    assert {pattern.lengths: pattern.rows for pattern in pack(counts(lengths), BUCKETS, True)} == rows


def test_thousands_of_lengths_leave_little_padding():
    lengths = np.random.default_rng(0).integers(1, 41, 10_000)
    assert lengths.sum() / positions(pack(counts(lengths), BUCKETS, True)) > 0.99


def test_bucket_numbers_start_at_first():
    assert pack(counts([5]), BUCKETS[1:], True, 1) == pack(counts([5]), BUCKETS[1:], False, 1) == [Pattern(1, (5,), 1)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_batches_are_whole_except_in_the_longest_bucket(packing, seed):
    records = counts(np.random.default_rng(seed).integers(1, 41, 300))
    patterns = whole_batches(pack(records, BUCKETS, packing), BUCKETS, lambda length: 320 // length, packing)
    assert (packed(patterns) == records).all()
    assert all(sum(pattern.lengths) <= BUCKETS[pattern.bucket] for pattern in patterns)
    rows = np.bincount([p.bucket for p in patterns], [p.rows for p in patterns], 3)
    assert rows[0] % 32 == 0 and rows[1] % 16 == 0 and rows[2] > 0


def test_rows_that_fill_no_batch_move_up_as_little_as_possible():
    def settle(lengths, packing=False):
        patterns = pack(counts(lengths), BUCKETS, packing)
        return sorted(whole_batches(patterns, BUCKETS, lambda _: 2, packing))

    assert settle([7]) == [Pattern(0, (7,), 1)]
    assert settle([7, 15]) == [Pattern(1, (7,), 1), Pattern(1, (15,), 1)]
    assert settle([6, 7, 8, 15]) == [
        Pattern(0, (7,), 1),
        Pattern(0, (8,), 1),
        Pattern(1, (6,), 1),
        Pattern(1, (15,), 1),
    ]
    assert settle([9, 9, 9, 9, 9, 20], packing=True)[-1].bucket == 1
