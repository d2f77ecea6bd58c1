"""Photos with another picture of the same view -> records: the picture from the photo, or the photo from the picture."""

import hashlib
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from lumina_jax.conversation import task_prompt
from lumina_jax.data.omni.captions import Captions
from lumina_jax.data.omni.pictures import size_of
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource
from lumina_jax.errors import InputError, StorageError, prefixed_errors
from lumina_jax.vocab import IMAGE_SYMBOL

PAINT_VERSION = 1
"""Part of every fingerprint; raise it when pictures are painted in another way."""


@dataclass(frozen=True)
class View:
    """A photo, the picture that answers a task about it, and the text of the task's request, if it has one.

    ``path`` is the photo's path below the folder of its set, by which captions are looked up.
    """

    path: str
    photo: ImageFile
    picture: ImageFile
    text: str = ""


class Views:
    """A numbered collection of views for one of conversation.TASKS.

    ``entries`` has one entry for each view. Errors name a view ``title``, such as "FILE, image", and its number.
    """

    task: str
    fingerprint: str

    def __init__(self, entries: Sized, title: str = ""):
        self._entries, self._title = entries, title

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """How errors name the view."""
        return f"{self._title} {index}"

    def view(self, index: int) -> View:
        """Raises ValueError or OSError for a bad view."""
        raise NotImplementedError


class PathViews(Views):
    """Views that are listed and named by the paths ``entries`` of their photos."""

    def name(self, index: int) -> str:
        return self._entries[index]


class ViewSource(StoredSource):
    """A record for each view: the task's request about the photo, and the picture as its answer.

    With ``captions`` the pair is swapped: the picture and a caption are the request, and the photo is the answer.
    """

    def __init__(self, views: Views, captions: Captions | None = None):
        self._views, self._captions = views, captions
        made_of = f"{views.task} {PAINT_VERSION} {views.fingerprint} {captions.fingerprint if captions else ''}"
        self.fingerprint = hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._views)

    def stored(self, index: int) -> StoredRecord:
        with prefixed_errors(f"record {index}, {self._views.name(index)}"):
            view = self._views.view(index)
            task, photo, picture = self._views.task, size_of(view.photo), size_of(view.picture)
            if photo != picture:
                raise InputError("the photo has {}x{} pixels, its {} {}x{}".format(*photo, task, *picture))
            if self._captions is None:
                request = task_prompt(task, view.text)
                return StoredRecord([(request, IMAGE_SYMBOL)], [view.photo, view.picture])
            request = task_prompt("condition", self._captions.of(view.path))
            return StoredRecord([(request, IMAGE_SYMBOL)], [view.picture, view.photo])


class FolderLayout(NamedTuple):
    """One of the forms in which a set is published.

    ``pattern`` matches the whole path of every photo below the folder, such as ``example``; ``view`` reads the view of a match
    in the folder.
    """

    example: str
    pattern: str
    view: Callable[[str, re.Match], View]


class FolderViews(PathViews):
    """The views of a folder: one for each path below it that matches its layout, sorted by path.

    The folder has the first of ``layouts`` of which any path matches. Only paths that match the shell pattern ``match`` count.
    The paths are in memory. Raises MissingFileError when there is no folder, InputError when no path matches,
    StorageError when a subfolder cannot be read.
    """

    def __init__(self, folder: str, task: str, layouts: Sequence[FolderLayout], match: str = "*"):
        self.folder, self.task = folder, task
        listed = files.listing(folder)
        if unread := [path for path, _ in listed if path.endswith("/")]:
            raise StorageError(f"{files.join(folder, unread[0])}: the folder cannot be read; allow it, or move it away")
        paths = [path for path, _ in listed if fnmatchcase(path, match)]
        for _, pattern, view in layouts:
            self._pattern, self._view = re.compile(pattern, re.DOTALL), view
            if matching := [path for path in paths if self._pattern.fullmatch(path)]:
                break
        else:
            raise InputError(
                f"{folder} holds no file like {' or '.join(layout.example for layout in layouts)}"
                + (f" and {match}" if match != "*" else "")
                + "; OMNI.md shows the folders of every set"
            )
        super().__init__(matching)
        self.fingerprint = files.listing_digest([*listed, (match, len(matching))])

    def view(self, index: int) -> View:
        return self._view(self.folder, self._pattern.fullmatch(self._entries[index]))
