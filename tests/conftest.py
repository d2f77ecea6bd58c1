"""Every test runs on eight fake CPU devices."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import jax
import pytest
from goldens_at import golden_roots

from lumina_jax.vocab import Vocab

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    """A folder with the tokenizer of the goldens: the published layout of names and ids, synthetic merges."""
    return golden_roots("tokenizer")[0] / "tokenizer" / "hf_tokenizer"


@pytest.fixture(scope="session")
def vocab(tokenizer_path) -> Vocab:
    """The tokenizer of ``tokenizer_path``, loaded once."""
    return Vocab.load(tokenizer_path)


@pytest.fixture(scope="module")
def plain_code():
    """Compiles with few optimizations, three times as fast: most laws hold of programs that LLVM left as they were."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
