"""The TPU compiler, where it is installed."""

import os

import pytest

from lumina_jax.pods.topology import environment


@pytest.fixture(scope="session")
def tpu_compiler():
    """Sets libtpu up for compiling without a TPU; skips the test when libtpu is not installed."""
    pytest.importorskip("libtpu", reason="pip install -r lumina_jax/pods/requirements.txt")
    os.environ.update(environment())
    os.environ.pop("XLA_FLAGS", None)  # those of the tests are for CPUs; this process has read them


@pytest.fixture(scope="module", autouse=True)
def all_optimizations(optimized):
    """Figures are those of programs as they run on a TPU."""
