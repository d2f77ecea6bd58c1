"""Laws of the permutations: bijections of any size, all about equally frequent, computed for many indices at once."""

import itertools
from collections import Counter

import numpy as np
import pytest

from lumina_jax.data.permutation import key_of, shuffled


@pytest.mark.smoke
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65_537])
def test_a_permutation_holds_every_number_once(size):
    for key in (key_of(0), key_of(1, 2)):
        assert (np.sort(shuffled(np.arange(size), size, key)) == np.arange(size)).all()


def test_many_permutations_at_once_equal_those_one_by_one():
    sizes = np.random.default_rng(0).integers(1, 10**12, 200)
    index, keys = sizes * 2 // 3, key_of(5, np.arange(200))
    together = shuffled(index, sizes, keys)
    assert [int(shuffled(index[i : i + 1], sizes[i], keys[i])[0]) for i in range(200)] == together.tolist()
    assert (together >= 0).all() and (together < sizes).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_orders_are_about_equally_frequent(size):
    keys = key_of(np.arange(6000), 7)
    orders = zip(*(shuffled(np.full(6000, i), size, keys) for i in range(size)), strict=True)
    counts = Counter(orders)
    expected = 6000 / len(list(itertools.permutations(range(size))))
    assert len(counts) * expected == 6000
    assert all(0.7 < count / expected < 1.3 for count in counts.values())


def test_neighbours_are_separated_and_keys_give_other_orders():
    order = shuffled(np.arange(10_007), 10_007, key_of(3))
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_007))[0, 1]) < 0.05
    assert (order == shuffled(np.arange(10_007), 10_007, key_of(4))).mean() < 0.01


def test_a_key_depends_on_every_value_and_on_their_order():
    keys = [key_of(*values)[0] for values in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1,)]]
    assert len(set(keys)) == len(keys)
    assert key_of(3, np.array([4, 5]))[1] == key_of(3, 5)[0]
