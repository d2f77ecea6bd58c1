"""Addresses of repositories of models on the Hugging Face hub: hf://OWNER/NAME[@REVISION][/FOLDER]."""

import re
from dataclasses import dataclass

from lumina_jax.errors import InputError, printable

SCHEME = "hf://"
FORM = "hf://OWNER/NAME[@REVISION][/FOLDER], such as hf://Alpha-VLLM/Lumina-mGPT-7B-768"
PART = r"[A-Za-z0-9][\w.-]{0,95}"
GRAMMAR = re.compile(
    rf"hf://(?:models/)?(?P<name>{PART}/{PART})(?:@(?P<revision>[^/\s]+))?(?P<folder>(?:/[^/\s]+)*)/?", re.ASCII
)
OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets")
"""Beginnings of addresses of what is no model."""
LONGEST_PART = 200
"""Letters of a name of a folder or revision: file systems take 255 bytes."""
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A repository ``name`` (OWNER/NAME), its ``revision`` (a branch, a tag or a commit), and a ``folder`` or file in it or ""."""

    name: str
    revision: str = "main"
    folder: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision.replace('/', '%2F')}"
        return f"{SCHEME}{self.name}{revision}{'/' * bool(self.folder)}{self.folder}"


def is_hub(address: object) -> bool:
    """Whether an address begins as those of the hub do; :func:`parse` says whether it is one."""
    return str(address).lower().startswith(SCHEME)


def parse(text: str) -> HubAddress:
    """The HubAddress that is written ``text``; a / in a revision is written %2F. Raises InputError for any other form."""
    kind = text[len(SCHEME) :].partition("/")[0]
    if kind in OTHER_KINDS:
        raise InputError(f"{text}: {kind} are no models; give {FORM}")
    match = GRAMMAR.fullmatch(SCHEME + text[len(SCHEME) :])
    folder, revision = (
        (match["folder"].strip("/"), (match["revision"] or "main").replace("%2F", "/")) if match else ("", "")
    )
    parts = {*folder.split("/"), *revision.split("/")}
    if match is None or {"..", "."} & parts or printable(text) != text or max(map(len, parts)) > LONGEST_PART:
        raise InputError(f"{text} is no address of a repository on the hub; give {FORM}")
    return HubAddress(match["name"], revision, folder)
