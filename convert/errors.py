"""Errors of files and libraries, turned into errors that the user can mend: each names the file and the cure."""

from collections.abc import Iterator
from contextlib import contextmanager

from lumina_jax.errors import InputError, StorageError, UserError
from lumina_jax.places import Place, store_errors


@contextmanager
def read_errors(path: Place) -> Iterator[None]:
    """Turns the refusal of a disk or store inside, such as a missing permission, into a StorageError that names ``path``."""
    try:
        yield
    except UserError:
        raise
    except store_errors() as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise StorageError(f"{path} {why}; check its permissions and its disk, or copy it again") from error


@contextmanager
def write_errors(path: Place, *library_errors: type[Exception]) -> Iterator[None]:
    """Turns the refusal of a disk or store inside, such as a full disk, into a StorageError that names ``path``.

    ``library_errors`` are the exceptions that a library raises in place of an OSError.
    """
    try:
        yield
    except UserError:
        raise
    except (*store_errors(), *library_errors) as error:
        why = f"cannot be written ({str(error) or type(error).__name__})"
        raise StorageError(f"{path} {why}; mend that, or choose another disk, and run it again") from error


@contextmanager
def field_errors(file: Place) -> Iterator[None]:
    """Turns errors about the fields of a config ``file`` into an InputError that begins with its path."""
    try:
        yield
    except KeyError as missing:
        raise InputError(f"{file} is no {file.name} of a Chameleon model: it has no field {missing}") from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{file} has a field of the wrong type ({error}); fetch or write it again") from None
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
