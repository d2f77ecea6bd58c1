"""The TPU compiler, where it is installed."""

import os

import pytest

from lumina_jax.pods.topology import environment


@pytest.fixture(scope="session")
def tpu_compiler():
    """Sets libtpu up for compiling without a TPU; skips the test when libtpu is not installed."""
    pytest.importorskip("libtpu", reason="pip install -r lumina_jax/pods/requirements.txt")
    os.environ.update(environment())
