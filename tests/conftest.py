"""Every test runs on eight fake CPU devices."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import jax
import pytest
from goldens_at import golden_roots
from jax.experimental.compilation_cache import compilation_cache

from lumina_jax.vocab import Vocab

jax.config.update("jax_num_cpu_devices", 8)

LONG_FILES = (
    "test_quickstart.py",
    "test_assets.py",
    "test_speculative.py",
    "test_processes.py",
    "test_stream.py",
    "test_chameleon.py",
    "test_readme.py",
)
"""Files that take a minute or two, longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with LONG_FILES: a worker takes whole files, and one that began with a long one last would work alone."""
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The compilation cache, one folder for all runs, so that each program is compiled once."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
