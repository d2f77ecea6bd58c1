"""Decoding wide compiles for a TPU: a tree of drafts, int4 matrices, an int8 cache, several pictures."""

from dataclasses import replace

import pytest
from test_compile import TINY

from lumina_jax.config import SampleConfig
from lumina_jax.pods.compile import Outcome, compile_programs
from lumina_jax.pods.topology import parse

MODEL = replace(TINY.model, mlp=512)
WIDE = replace(TINY, model=MODEL, sample=SampleConfig(window=16, tree=8, cache="int8"))


@pytest.fixture(scope="module")
def wide(tpu_compiler) -> Outcome:
    (outcome,) = compile_programs(WIDE, parse("v5e:1x1"), ("decode",), "int4", 2)
    return outcome


def test_the_cache_and_the_matrices_are_counted_as_small_as_they_are(wide):
    m = MODEL
    matrices = m.layers * (4 * m.width * m.heads * m.head_dim + 3 * m.width * m.mlp)
    # 4.25 bits a weight with its share of a scale; embedding and head in bfloat16; a few norms.
    assert wide.work.weights == pytest.approx(matrices * 4.25 / 8 + 4 * m.vocab * m.width, rel=0.02)
    assert wide.work.rows == 4
    slots = wide.work.cache / (2 * m.layers * wide.work.rows * m.kv_heads * (m.head_dim + 2))
    assert slots == int(slots) and 256 <= slots <= 512
