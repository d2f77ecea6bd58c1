"""What the Hugging Face hub is asked, and its refusals in words that name the cure. The client is huggingface_hub."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from lumina_jax.errors import (
    InputError,
    MissingFileError,
    MissingPackageError,
    StorageError,
    UserError,
    printable,
)
from lumina_jax.extras import install
from lumina_jax.faults import TRANSIENT_STATUS
from lumina_jax.hub.address import COMMIT, HubAddress

LIBRARY = "lumina_jax"
"""How the hub is told who asks."""
PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
QUERY = re.compile(r"""(https?://[^\s?'"]*)\?[^\s'"]*""")
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class PassingHubError(StorageError, ConnectionError):
    """The hub, or the way to it, does not work in this moment."""


class RemoteFile(NamedTuple):
    """A file of a repository: ``size`` in bytes, and ``digest``, by which the hub's cache calls it: the SHA-256 of a large file
    (64 hex digits), git's SHA-1 of a small one (40)."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A repository at one ``commit``: its ``files`` by name, and ``now``, the name that it has meanwhile."""

    address: HubAddress
    commit: str
    files: Mapping[str, RemoteFile]
    now: str

    @property
    def short(self) -> str:
        """The commit as people write it."""
        return self.commit[:12]


def need_hub():
    """The package huggingface_hub. Raises MissingPackageError naming what to install."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingPackageError(f"an address hf:// needs huggingface_hub ({error}): {install('hub')}") from None
    return huggingface_hub


def endpoint() -> str:
    """The address of the hub as it is told: https://huggingface.co, or what HF_ENDPOINT says, without its password."""
    return _told(need_hub().constants.ENDPOINT)


def _told(text: str) -> str:
    """``text`` without what URLs in it must not tell: passwords, and the queries by which content networks know who may read."""
    return QUERY.sub(r"\1", PASSWORD.sub("", text))


def is_offline() -> bool:
    """Whether the user wants nothing fetched: HF_HUB_OFFLINE=1."""
    return need_hub().constants.HF_HUB_OFFLINE


def repository_of(address: HubAddress) -> Repository:
    """What a repository holds at the revision of ``address``, by one request.

    Raises MissingFileError for an unknown repository or revision, PassingHubError, StorageError for one that is closed to the user
    and where there is no network.
    """
    hub = need_hub()
    with hub_errors(address):
        try:
            info = hub.HfApi(library_name=LIBRARY).model_info(
                address.name,
                revision=address.revision,
                files_metadata=True,
                timeout=hub.constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:  # JSON of another make
            raise ValueError(f"{type(error).__name__}: {error}") from error
    files = {file.name: file for file in (_remote_file(address, entry) for entry in info.siblings or ())}
    if not COMMIT.fullmatch(str(info.sha)):
        raise StorageError(f"{address}: {endpoint()} says no commit; is HF_ENDPOINT the address of a hub?")
    return Repository(address, info.sha, files, str(info.id))


def _remote_file(address: HubAddress, entry) -> RemoteFile:
    """A file as the hub's client lists it. Raises StorageError for one that cannot be verified, or may not be written."""
    name, size, digest = str(entry.rfilename), entry.size, entry.blob_id
    if entry.lfs:
        size, digest = entry.lfs.size, entry.lfs.sha256
    if type(size) is not int or size < 0 or DIGEST.fullmatch(str(digest)) is None:
        raise StorageError(
            f"{address}: {endpoint()} says neither size nor checksum of {name}, so it cannot be verified; is HF_ENDPOINT the "
            "address of a hub?"
        )
    if {"", ".", ".."} & set(name.split("/")):
        raise StorageError(f"{address}: its file {name!r} would lie outside of its folder; nothing is fetched")
    if printable(name) != name:
        raise StorageError(f"{address}: its file {name!r} has letters that no file should have; nothing is fetched")
    return RemoteFile(name, size, digest)


@contextmanager
def hub_errors(address: HubAddress) -> Iterator[None]:
    """Turns whatever the hub and its client refuse into errors of one line."""
    errors = need_hub().errors
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise StorageError(_gated(address)) from error
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(
            f"{address}: there is no revision {address.revision}; {endpoint()}/{address.name}/commits lists them"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"{address}: {endpoint()} knows no such repository, or it is private; check its name, and {_token_advice()}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise MissingFileError(
            f"{address}: the hub lists a file that it does not have ({_first_line(error)}); try again, or give another @REVISION"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(address, error) from error
    except errors.HTTPError as error:
        raise _no_connection(address, error) from error
    except UnicodeEncodeError as error:  # the only header that a user writes
        raise InputError(f"{address}: the token has letters that no token has; {_token_advice()}") from error
    except ValueError as error:  # no JSON
        raise StorageError(
            f"{address}: what {endpoint()} answers is not what a hub says ({_first_line(error)}); see that HF_ENDPOINT is right "
            "and that no page of a proxy comes in between"
        ) from error


def _gated(address: HubAddress) -> str:
    page = f"{endpoint()}/{address.name}"
    if need_hub().get_token():
        why = (
            f"the account of your token has not been granted access yet: accept the licence at {page} with that account"
        )
    else:
        why = f"accept the licence at {page}, and {_token_advice()}"
    return f"{address} is gated: its files are given to accounts that accepted its licence; {why}, then run this again"


def _token_advice() -> str:
    if need_hub().get_token():
        return "see that your token (HF_TOKEN, or hf auth login) may read it"
    return f"give a token of {endpoint()}/settings/tokens as HF_TOKEN=..., or by hf auth login"


def _refusal(address: HubAddress, error) -> StorageError:
    """The error for an answer of HTTP that is none of those that have a class of their own."""
    status = error.response.status_code
    if status in (401, 403):
        return StorageError(
            f"{address}: the hub refuses with HTTP {status}; {_token_advice()}, and see {endpoint()}/{address.name}"
        )
    if status in TRANSIENT_STATUS:
        reason = "too many requests" if status == 429 else "the hub is not well"
        after = error.response.headers.get("Retry-After", "")
        wait = f"wait {after} s" if after.isdecimal() else "wait some minutes"
        return PassingHubError(
            f"{address}: HTTP {status}, {reason}; {wait} and run this again, which goes on from here"
        )
    return StorageError(f"{address}: HTTP {status}, {_first_line(error)}; see {endpoint()}/{address.name}")


def _no_connection(address: HubAddress, error: Exception) -> StorageError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return StorageError(
                f"{address}: {endpoint()} is not known here ({cause}); check the network, or copy the hub's cache of another "
                "machine (HF_HOME) and set HF_HUB_OFFLINE=1"
            )
        cause = cause.__cause__ or cause.__context__
    text = f"{type(error).__name__}: {_first_line(error)}"
    return PassingHubError(f"{address}: no connection to {endpoint()} ({text}); check the network and run this again")


def _first_line(error: BaseException) -> str:
    return next((_told(line.strip()) for line in str(error).splitlines() if line.strip()), type(error).__name__)
