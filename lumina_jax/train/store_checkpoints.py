"""Checkpoints in stores: what Orbax lacks for s3://, and listings and renames as etils does them for no store.

Orbax takes an address of s3:// for a path that is not absolute. TensorStore, by which it reads and writes arrays, has a driver for
S3, which asks Amazon for the region of a bucket. Another server of that protocol is named to it and to s3fs by AWS_ENDPOINT_URL, as
to all clients of S3.
"""

import os
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit

import fsspec
from etils import epath
from etils.epath import backend
from fsspec.spec import AbstractFileSystem
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

S3 = "s3://"
ENDPOINT, REGIONS = "AWS_ENDPOINT_URL", ("AWS_REGION", "AWS_DEFAULT_REGION")
"""Environment variables: the address of a server that is not Amazon's, and the region, of which its own is the default."""
OWN_REGION = "us-east-1"
"""What servers other than Amazon's call their only region."""

_plain_kvstore = gcs_utils.get_kvstore_for_gcs
_plain_path = tensorstore_utils._normalize_path


def kvstore(address: str) -> dict[str, str]:
    """TensorStore's specification of the files below a URL of gs:// or s3://."""
    if not address.startswith(S3):
        return _plain_kvstore(address)
    url = urlsplit(address)
    files = {"driver": "s3", "bucket": url.netloc, "path": url.path.lstrip("/")}
    if endpoint := os.environ.get(ENDPOINT):
        region = next(filter(None, map(os.environ.get, REGIONS)), OWN_REGION)
        files |= {"endpoint": endpoint, "aws_region": region}
    return files


def write_in_place(context: ocp.Context, folder: object) -> None:
    """Saves into ``folder`` by ``context`` are marked as whole by a last file where the store cannot rename: as on gs://."""
    if str(folder).startswith(S3):
        context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE


def _path(address: str) -> str:
    return _plain_path(address) if not address.startswith(S3) else S3 + _plain_path(address[len(S3) :])


@lru_cache
def _file_system(self: backend.Backend, name: str) -> AbstractFileSystem:
    """The client of a store. That of etils keeps listings, and so misses what TensorStore and other processes write."""
    return fsspec.filesystem(name, use_listings_cache=False, **({"finalize_on_close": True} if name == "gcs" else {}))


def _rename(self: backend.Backend, path: epath.PathLike, target: epath.PathLike) -> None:
    """Renames a file or all files below a folder of a store. That of etils wants the folder of ``target`` to be there, which in a
    store it never is before a file is in it: Orbax could join no parts of a checkpoint."""
    store = self.fs(path)
    if self.exists(target):
        raise FileExistsError(f"{target} exists already")
    source = store._strip_protocol(str(path))
    files = store.find(source)
    if not files:
        raise FileNotFoundError(f"{path} is not there")
    store.copy(files, [store._strip_protocol(str(target)) + file.removeprefix(source) for file in files])
    store.rm(files)


def _remove(self: backend.Backend, path: epath.PathLike) -> None:
    """Removes all files below a folder of a store, which is gone by itself when they were renamed."""
    store = self.fs(path)
    with suppress(FileNotFoundError):
        store.rm(str(path), recursive=True)


type(backend.fsspec_backend)._get_filesystem = _file_system
type(backend.fsspec_backend).rename = _rename
type(backend.fsspec_backend).rmtree = _remove
gcs_utils.get_kvstore_for_gcs = kvstore
tensorstore_utils._normalize_path = _path
tensorstore_utils._use_gcs_driver = lambda address: address.startswith(("gs://", S3))
