"""The simulated model of tests/bench has the entropy and drift that it claims, and the sampler decodes it as it does real ones."""

from dataclasses import replace

import numpy as np
import pytest
from bench.simulated_decoding import calibration, decode, table
from bench.simulated_model import PUBLISHED, SimulatedModel, calibrated, simulated_vocab

from lumina_jax.config import SampleConfig

CODES, SHAPE = 1000, (12, 48)
VOCAB = simulated_vocab(CODES, 6)


@pytest.fixture(scope="module")
def model() -> SimulatedModel:
    return calibrated(SimulatedModel.drawn(VOCAB, SHAPE[1]), CODES, PUBLISHED)


def test_entropy_and_drift_are_those_wanted(model):
    fitted = calibration(model, VOCAB, CODES, SHAPE, PUBLISHED, pictures=4)
    wanted, reached, plain = (fitted[name] for name in ("target", "guidance", "no_guidance"))
    np.testing.assert_allclose(reached["entropy_deciles"], wanted["entropy_deciles"], rtol=0.08)
    for offset, drift in wanted["drift"].items():
        assert reached["drift"][offset] == pytest.approx(drift, rel=0.25), f"{offset} tokens behind a changed one"
        assert plain["drift"][offset] < reached["drift"][offset]
    assert plain["entropy"] > reached["entropy"]


def test_a_tree_of_drafts_paints_what_one_by_one_decoding_does(model):
    """So the model knows which token stands before which, in a chain and in a tree."""
    settings = dict(max_new_tokens=2 * 49 + 1, image_top_k=CODES)
    off = SampleConfig(**settings, parallel="off")
    drawn, passes = decode(model, VOCAB, CODES, (2, 48), 2, off)
    assert passes.tolist() == [97, 97]  # a pass for each code, and one for the last end-of-line and end-image
    tree, fewer = decode(model, VOCAB, CODES, (2, 48), 2, replace(off, parallel="matched", window=8, tree=8))
    np.testing.assert_array_equal(tree, drawn)
    assert (fewer < passes / 1.5).all()


def test_the_table_has_a_line_for_each_way():
    line = {"guidance": 4.0, "method": "matched+tree", "window": 16, "passes": 500.4, "half_width": 12.0, "fewer": 4.71}
    off = {"guidance": 4.0, "method": "off", "window": 1, "passes": 2305.0, "half_width": 0.0, "fewer": 1.02}
    assert table([off, line, line | {"window": 64}]).splitlines() == [
        "| guidance | way | window 16 | window 64 |",
        "|---|---|---|---|",
        "| 4 | off | 2,305 ± 0 (1.02x) | 2,305 ± 0 (1.02x) |",
        "| 4 | matched+tree | 500 ± 12 (4.71x) | 500 ± 12 (4.71x) |",
    ]
