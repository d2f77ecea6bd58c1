"""A folder of images with a caption file for each, or with a metadata file."""

import json
import posixpath

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import imagefolder
from lumina_jax.data.sources.images import SUFFIXES, ImageFile, read_image
from lumina_jax.data.sources.json_list import JsonSource
from lumina_jax.data.sources.record import StoredRecord, StoredSource, checked_object, stored_record
from lumina_jax.data.sources.table import TableSource
from lumina_jax.errors import InputError, prefixed_errors

METADATA = ("metadata.jsonl", "metadata.csv")
TEXTS = (".txt", ".caption", ".json")


def open_folder(folder: str) -> StoredSource:
    """The records of metadata.jsonl or metadata.csv in ``folder``, else a FolderSource.

    Metadata are as Hugging Face's imagefolder has them: ``file_name`` and ``text`` (or ``caption``, or ``conversations``).
    """
    listed = files.listing(folder)
    for name in METADATA:
        if any(path == name for path, _ in listed):
            reader = JsonSource if name.endswith(".jsonl") else TableSource
            return reader(files.join(folder, name), adapt=imagefolder)
    return FolderSource(folder, listed)


class FolderSource(StoredSource):
    """Every image below a folder, sorted by path, with the caption in the .txt, .caption or .json file of the same name.

    A .json file may hold a whole record, also one without an image. An image without a caption and a text file without an image
    are bad records. All names are in memory: pack more than a few million images into tar shards.
    """

    def __init__(self, folder: str, listed: list[tuple[str, int]]):
        self.folder = folder
        stems: dict[str, list[str]] = {}
        for path, _ in listed:
            stem, suffix = posixpath.splitext(path)
            if suffix.lower() in SUFFIXES + TEXTS:
                stems.setdefault(stem, []).append(path)
        self._records = [record for stem in sorted(stems) for record in _records(stems[stem])]
        texts = (files.read(files.join(folder, text)) for _, text in self._records if text is not None)
        self.fingerprint = files.listing_digest(listed, texts)
        if not self._records:
            raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES[:4])}, ...) and no {METADATA[0]}")

    def __len__(self) -> int:
        return len(self._records)

    def stored(self, index: int) -> StoredRecord:
        image, text = self._records[index]
        with prefixed_errors(files.join(self.folder, image or text)):
            if text is None:
                raise InputError(f"no caption beside it; looked for {', '.join(TEXTS)}")
            item = self._item(text) | ({"image": image} if image else {})
            return stored_record(item, self._fetch)

    def _item(self, text: str) -> dict:
        content = files.read(files.join(self.folder, text))
        if not text.endswith(".json"):
            return {"caption": content.decode("utf-8-sig").strip()}
        item = checked_object(json.loads(content), f"{text} holds")
        return {key: item[key] for key in ("conversations", "caption", "text") if key in item}

    def _fetch(self, image: object) -> ImageFile:
        return read_image(files.join(self.folder, str(image)))


def _records(paths: list[str]) -> list[tuple[str | None, str | None]]:
    """(image, text file) for each image of one name, or (None, text file) where there is no image."""
    images = sorted(path for path in paths if posixpath.splitext(path)[1].lower() in SUFFIXES)
    by_suffix = {posixpath.splitext(path)[1].lower(): path for path in paths}
    text = next((by_suffix[suffix] for suffix in TEXTS if suffix in by_suffix), None)
    return [(image, text) for image in images] or [(None, text)]
