"""Whether the TPU compiler is here."""

import os

import pytest

from lumina_jax.pods.topology import environment


@pytest.fixture(scope="session")
def tpu_compiler():
    """Skips a test where libtpu is not installed."""
    pytest.importorskip("libtpu", reason="pip install -r lumina_jax/pods/requirements.txt")
    os.environ.update(environment())
