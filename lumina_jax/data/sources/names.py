"""Names of files in folders and archives: which are pictures, and which were left there by a system."""

import posixpath
import re

from lumina_jax.data.sources.images import PICTURE_SUFFIXES

LITTER = re.compile(
    r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX|@eaDir|Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|"
    r"PaxHeaders?(\.\d+)?)(/|\Z)",
    re.IGNORECASE,
)
"""Files and folders that macOS, Windows, network disks and old tars leave beside those of a user."""


def suffix_of(path: str) -> str:
    """The suffix in small letters, with its dot: ``.jpg`` of ``a.b.JPG``."""
    return posixpath.splitext(path)[1].lower()


def is_picture(path: str) -> bool:
    """Whether a file counts as a picture by its name, also when no decoder reads its format."""
    return suffix_of(path) in PICTURE_SUFFIXES


def is_litter(path: str) -> bool:
    """Whether a system left the file there, such as the ``._name`` that macOS packs before ``name``."""
    return LITTER.search(path) is not None


def is_visible(path: str) -> bool:
    """Whether a file of a folder may belong to a record: neither it nor a folder on its path is litter or begins with a dot."""
    return not is_litter(path) and not any(part.startswith(".") for part in path.split("/"))
