"""Compilation takes nearly all the time of these tests, so it is made short and shared."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def fast_compilation(plain_code):
    """All tests of training compile without most optimizations."""


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
