"""Compilation takes nearly all the time of these tests, so it is made short and shared."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def fast_compilation(plain_code):
    """All tests of training compile without most optimizations."""
