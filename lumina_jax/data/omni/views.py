"""Photos with another picture of what they show -> records: look at the photo, or paint it from the picture."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from lumina_jax.conversation import task_prompt
from lumina_jax.data.omni.captions import Captions
from lumina_jax.data.omni.pictures import size_of
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource
from lumina_jax.errors import InputError
from lumina_jax.vocab import IMAGE_SYMBOL

COLOURING = 1
"""Counts the changes of how pictures are painted: another number, another fingerprint."""


@dataclass(frozen=True)
class View:
    """A photo, the picture that answers a task about it, and the text that the task takes, if any.

    ``path`` is the photo's below the folder of its set: captions are found by it.
    """

    path: str
    photo: ImageFile
    picture: ImageFile
    text: str = ""


class Views(Protocol):
    """A numbered collection of views for one of conversation.TASKS."""

    task: str
    fingerprint: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a view is called by when it is bad."""

    def view(self, index: int) -> View:
        """Raises ValueError or OSError for a bad one."""


class ViewSource(StoredSource):
    """A record for each view: the task's request and the picture as its answer.

    With ``captions`` the two change places: the picture is the condition, and its photo is painted from it and the caption.
    """

    def __init__(self, views: Views, captions: Captions | None = None):
        self._views, self._captions = views, captions
        made_of = f"{views.task} {COLOURING} {views.fingerprint} {captions.fingerprint if captions else ''}"
        self.fingerprint = hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._views)

    def stored(self, index: int) -> StoredRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        name = self._views.name(index)
        try:
            view = self._views.view(index)
            if (photo := size_of(view.photo)) != (other := size_of(view.picture)):
                raise InputError(
                    f"the photo has {photo[0]}x{photo[1]} pixels, its {self._views.task} {other[0]}x{other[1]}"
                )
            if self._captions is None:
                request = task_prompt(self._views.task, view.text)
                return StoredRecord([(request, IMAGE_SYMBOL)], [view.photo, view.picture])
            request = task_prompt("condition", self._captions.of(view.path))
            return StoredRecord([(request, IMAGE_SYMBOL)], [view.picture, view.photo])
        except ValueError as error:
            raise InputError(f"record {index}, {name}: {error}") from error


class Kind(NamedTuple):
    """A form that a set is published in.

    ``pattern`` matches the whole path of each of its views, as ``example`` is one; ``look`` makes the view of such a match
    in a folder.
    """

    example: str
    pattern: str
    look: Callable[[str, re.Match], View]


class FolderViews:
    """The views of a folder: one for each path below it that matches, in the order of the paths.

    The first of ``kinds`` that matches anything is the folder's. A path must match the shell pattern ``wanted`` as well.
    The paths are held in memory. Raises FileNotFoundError when there is no folder, ValueError when nothing in it matches.
    """

    def __init__(self, folder: str, task: str, kinds: Sequence[Kind], wanted: str = "*"):
        self.folder, self.task = folder, task
        listed = files.listing(folder)
        there = [path for path, _ in listed if fnmatchcase(path, wanted)]
        for _, pattern, look in kinds:
            self._pattern, self._look = re.compile(pattern), look
            self._paths = [path for path in there if self._pattern.fullmatch(path)]
            if self._paths:
                break
        else:
            raise InputError(
                f"{folder} holds no file like {' or '.join(kind.example for kind in kinds)}"
                + (f" and {wanted}" if wanted != "*" else "")
                + "; OMNI.md shows the folders of every set"
            )
        self.fingerprint = listing_digest([*listed, (wanted, len(self._paths))])

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def view(self, index: int) -> View:
        return self._look(self.folder, self._pattern.fullmatch(self._paths[index]))


def listing_digest(listed: Sequence[tuple[str, int]]) -> str:
    """16 hex digits of names and sizes."""
    digest = hashlib.sha256()
    for path, size in listed:
        digest.update(f"{path}\0{size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
