"""The objects of the buckets of gcs_server.py: generations, preconditions, listings by prefix and page."""

import base64
import hashlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import google_crc32c

PAGE = 1000
"""The most entries of a page of a listing."""


class GcsError(Exception):
    """An answer other than success: its HTTP status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class StoredObject:
    """One object: its content and what the store says of it."""

    name: str
    data: bytes
    generation: int
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)
    metageneration: int = 1
    seconds: float = field(default_factory=time.time)

    @cached_property
    def hashes(self) -> dict[str, str]:
        digests = {
            "crc32c": google_crc32c.Checksum(self.data).digest(),
            "md5": hashlib.md5(self.data, usedforsecurity=False).digest(),
        }
        return {name: base64.b64encode(digest).decode() for name, digest in digests.items()}

    def resource(self, bucket: str) -> dict[str, object]:
        """What the JSON API says of the object."""
        moment = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.seconds)) + f".{int(self.seconds * 1000) % 1000:03d}Z"
        )
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "md5Hash": self.hashes["md5"],
            "crc32c": self.hashes["crc32c"],
            "etag": f"{self.generation}/{self.metageneration}",
            "timeCreated": moment,
            "updated": moment,
            "metadata": self.metadata,
        }


class Buckets:
    """Buckets of objects. All methods raise GcsError as the store would refuse them."""

    def __init__(self):
        self._buckets: dict[str, dict[str, StoredObject]] = {}
        self._listed: dict[str, dict[str, StoredObject]] = {}
        self._generations = itertools.count(int(time.time() * 1e6))

    def names(self) -> list[str]:
        return sorted(self._buckets)

    def make(self, bucket: str) -> None:
        self._buckets.setdefault(bucket, {})

    def remove(self, bucket: str) -> None:
        if self.objects(bucket):
            raise GcsError(409, f"The bucket {bucket} is not empty.")
        del self._buckets[bucket]

    def objects(self, bucket: str) -> dict[str, StoredObject]:
        """The objects of a bucket by name, to be read and changed."""
        if bucket not in self._buckets:
            raise GcsError(404, f"The specified bucket does not exist: {bucket}")
        return self._buckets[bucket]

    def freeze_listings(self) -> None:
        """From now on listings show what is here now, as a stale cache would; reads by name see the truth."""
        self._listed = {bucket: dict(objects) for bucket, objects in self._buckets.items()}

    def thaw_listings(self) -> None:
        self._listed = {}

    def get(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        found = self.objects(bucket).get(name)
        if found is None or query.get("generation", str(found.generation)) != str(found.generation):
            raise GcsError(404, f"No such object: {bucket}/{name}")
        if query.get("ifGenerationNotMatch") == str(found.generation):
            raise GcsError(304, "Not Modified")
        self._check(bucket, name, query)
        return found

    def put(self, bucket: str, name: str, data: bytes, query: Mapping[str, str], **about: object) -> StoredObject:
        self._check(bucket, name, query)
        stored = StoredObject(name, data, next(self._generations), **about)
        self.objects(bucket)[name] = stored
        return stored

    def patch(self, bucket: str, name: str, query: Mapping[str, str], change: dict) -> StoredObject:
        old = self.get(bucket, name, query)
        metadata = {**old.metadata, **change.get("metadata", {})}
        metadata = {key: value for key, value in metadata.items() if value is not None}
        new = replace(old, metadata=metadata, metageneration=old.metageneration + 1)
        self.objects(bucket)[name] = new
        return new

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        self._check(bucket, name, query)
        self.get(bucket, name, query)
        del self.objects(bucket)[name]

    def copy(self, source: tuple[str, str], target: tuple[str, str], query: Mapping[str, str]) -> StoredObject:
        plain = {"generation": query["sourceGeneration"]} if "sourceGeneration" in query else {}
        old = self.get(*source, plain)
        return self.put(*target, old.data, query, content_type=old.content_type, metadata=old.metadata)

    def compose(self, bucket: str, name: str, sources: list[dict], query: Mapping[str, str]) -> StoredObject:
        parts = []
        for source in sources:
            wanted = source.get("objectPreconditions", {}).get("ifGenerationMatch")
            parts.append(self.get(bucket, source["name"], {"ifGenerationMatch": str(wanted)} if wanted else {}).data)
        return self.put(bucket, name, b"".join(parts), query)

    def listing(self, bucket: str, query: Mapping[str, str]) -> dict[str, object]:
        """A page of the objects of a bucket, and of the prefixes up to the delimiter where there is one."""
        self.objects(bucket)
        objects = self._listed.get(bucket, self._buckets[bucket])
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        entries: dict[str, StoredObject | None] = {}
        for name in sorted(objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entries[prefix + head + mark if mark else name] = None if mark else objects[name]
        after = query.get("pageToken", "")
        page = [name for name in entries if name > after]
        size = min(int(query.get("maxResults", PAGE)), PAGE)
        shown = {name: entries[name] for name in page[:size]}
        answer: dict[str, object] = {"kind": "storage#objects"}
        if items := [found.resource(bucket) for found in shown.values() if found]:
            answer["items"] = items
        if prefixes := [name for name, found in shown.items() if not found]:
            answer["prefixes"] = prefixes
        if len(page) > size:
            answer["nextPageToken"] = page[size - 1]
        return answer

    def _check(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """Raises GcsError where a precondition of ``query`` does not hold; generation 0 is an object that is not there."""
        found = self.objects(bucket).get(name)
        generation, metageneration = (found.generation, found.metageneration) if found else (0, 0)
        holds = (
            query.get("ifGenerationMatch", str(generation)) == str(generation)
            and query.get("ifMetagenerationMatch", str(metageneration)) == str(metageneration)
            and query.get("ifGenerationNotMatch") != str(generation)
        )
        if not holds:
            raise GcsError(412, "At least one of the pre-conditions you specified did not hold.")
