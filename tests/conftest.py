"""Every test runs on eight fake CPU devices. Compiling takes most of the time: it is made short, and done once for each program.

Both hold for the processes that tests start, too. A JAX_COMPILATION_CACHE_DIR of one's own keeps the programs for the next time.
"""

import os
import shutil
import tempfile
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = (
    "false"  # read by gcsfs once; else it asks Google what kind a bucket is
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most laws hold of programs that LLVM left as they were, which takes half the time, and so does XLA's older way of writing fusions.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault(
    "XLA_FLAGS",  # jaxlib 0.11 refuses the first of them
    "--xla_cpu_use_fusion_emitters=false " * version("jaxlib").startswith("0.10.")
    + "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/lumina_jax_compiled_{os.getpid()}")

from pathlib import Path

import fsspec
import jax
import pytest
from goldens_at import golden_roots
from jax.experimental.compilation_cache import compilation_cache

from lumina_jax.places import place
from lumina_jax.vocab import Vocab

jax.config.update("jax_num_cpu_devices", 8)
COMPILED = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])

LONG_FILES = (
    "test_speculative.py",
    "test_quickstart.py",
    "test_assets.py",
    "test_processes.py",
    "test_readme.py",
    "test_parallel.py",
    "test_stream.py",
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


def pytest_unconfigure() -> None:
    """Removes the folder of compiled programs in the process that named it; its workers inherit the variable."""
    if COMPILED.name.endswith(f"_{os.getpid()}"):
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(scope="module")
def optimized():
    """Compiles as a user's run does, for tests that compute more than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def compiled_anew():
    """Programs do not come from the cache: for tests that read what the compiler says."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def gcs_server():
    """A GcsServer that this process and those it starts take for Google's as long as they use ``gcs``."""
    pytest.importorskip("gcsfs", reason="pip install -r lumina_jax/data/requirements-cloud.txt")
    from gcs_server import GcsServer

    with GcsServer() as server:
        yield server


@pytest.fixture
def gcs(gcs_server, monkeypatch, tmp_path_factory):
    """``gcs_server`` with an empty bucket "bucket" and no faults, in the environment of this process, and empty user's caches."""
    gcs_server.clear()
    gcs_server.buckets.make("bucket")
    gcs_server.buckets.objects("bucket").clear()
    caches = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("caches"))}
    for name, value in (gcs_server.environment | caches).items():
        monkeypatch.setenv(name, value)
    return gcs_server


@pytest.fixture
def memory():
    """A store in the memory of this process, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield place("memory://bucket")
    system.store.clear()


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A HubServer that huggingface_hub takes for the hub in this test, with an empty cache, no token, and pauses cut short."""
    from hub_server import HubServer
    from huggingface_hub import constants

    from lumina_jax import faults

    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(faults, "FIRST_PAUSE", 0.001)
    with HubServer() as server:
        changed = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        }
        changed |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_OFFLINE": False}
        for name, value in changed.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture(scope="session")
def s3_server():
    """An S3Server that this process and those it starts take for Amazon's as long as they use ``s3``."""
    pytest.importorskip("s3fs", reason="pip install -r lumina_jax/data/requirements-cloud.txt")
    from s3_server import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path_factory):
    """``s3_server`` with an empty bucket "bucket" and no faults, in the environment of this process, and nothing of the user's."""
    s3_server.clear()
    s3_server.buckets.make("bucket")
    s3_server.buckets.objects("bucket").clear()
    (own := tmp_path_factory.mktemp("user") / "none").touch()
    files = {"AWS_CONFIG_FILE": str(own), "AWS_SHARED_CREDENTIALS_FILE": str(own), "XDG_CACHE_HOME": str(own.parent)}
    for name, value in (s3_server.environment | files).items():
        monkeypatch.setenv(name, value)
    return s3_server
