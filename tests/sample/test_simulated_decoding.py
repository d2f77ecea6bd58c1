"""The simulated model of tests/bench has the entropy and drift that it claims, and the sampler decodes it as it does real ones."""

from types import SimpleNamespace

import numpy as np
import pytest
from bench.simulated_decoding import TREE, calibration, decode, row, table
from bench.simulated_model import PUBLISHED, SimulatedModel, calibrated, simulated_vocab

from lumina_jax.config import SampleConfig

CODES, SHAPE = 1000, (12, 48)
VOCAB = simulated_vocab(CODES, 6)


@pytest.fixture(scope="module")
def model() -> SimulatedModel:
    return calibrated(SimulatedModel.drawn(VOCAB, SHAPE[1]), CODES, PUBLISHED)


def test_entropy_and_drift_are_those_wanted(model):
    fitted = calibration(model, VOCAB, CODES, SHAPE, PUBLISHED, pictures=6)
    wanted, reached, plain = (fitted[name] for name in ("target", "guidance", "no_guidance"))
    np.testing.assert_allclose(reached["entropy_deciles"], wanted["entropy_deciles"], rtol=0.08)
    for offset, drift in wanted["drift"].items():
        assert reached["drift"][offset] == pytest.approx(drift, rel=0.25), f"{offset} tokens behind a changed one"
        assert plain["drift"][offset] < reached["drift"][offset]
    assert plain["entropy"] > reached["entropy"]


def test_one_by_one_each_code_takes_a_pass_and_drafts_save_some(model):
    shape = (2, 48)
    cfg = SampleConfig(max_new_tokens=2 * 49 + 1, parallel="off", image_top_k=CODES)
    assert decode(model, VOCAB, CODES, shape, 2, cfg).tolist() == [96, 96]
    options = SimpleNamespace(codes=CODES, rows=2, cols=48, pictures=2)
    lines = [row(model, VOCAB, options, 4.0, "matched" + TREE, 16)]
    assert 1.5 < lines[0]["fewer"] < 8 and lines[0]["half_width"] >= 0
    assert table(lines).splitlines()[-1].startswith("| 4 | matched+tree | ")
