"""One reader of text for data and for prompts: bytes to text, text to lines, JSON to values.

Lines end at \\n and \\r\\n only: other separators of Unicode (U+2028, U+0085, form feed) are letters. Texts are UTF-8, or UTF-16
and UTF-32 with a byte-order mark. Every error is an InputError that says what to change.
"""

import codecs
import json
import re
from collections import Counter

from lumina_jax.errors import InputError

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins like the mark of UTF-16, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte-order marks and the encodings they announce."""
MARK = "\ufeff"
"""A byte-order mark in a decoded text: where files that have one were joined."""
MAX_DEPTH = 100
"""How deep lists and objects of JSON may be nested."""
STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|[\[{]|[\]}]', re.DOTALL)
"""The strings of a JSON text, which are passed over, and its brackets."""
SURROGATE = re.compile("[\ud800-\udfff]")
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
LETTERS_SHOWN = 30


def encoding_of(content: bytes, name: str) -> tuple[str, int]:
    """The encoding of a text that begins with ``content``, and the bytes of its byte-order mark: without one UTF-8 and 0.

    Raises InputError, which calls the text ``name``, when it begins with NUL bytes, as UTF-16 does that lacks its mark.
    """
    if mark := next((mark for mark in MARKS if content.startswith(mark)), b""):
        return MARKS[mark], len(mark)
    if 0 in content[:4]:
        raise InputError(
            f"{name} begins with NUL bytes, which looks like UTF-16 without a byte-order mark; save it as UTF-8",
            cause="no UTF-8",
        )
    return "utf-8", 0


def decode_text(content: bytes, name: str) -> str:
    """The text of a file or member ``name``, without its byte-order mark; InputError naming the first byte that is wrong."""
    encoding, mark = encoding_of(content, name)
    try:
        return content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: byte 0x{error.object[error.start]:02x} at offset {mark + error.start} is no {encoding.upper()}; "
            "save it as UTF-8",
            cause="no UTF-8",
        ) from error


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends, \\n or \\r\\n; an end after the last line adds no empty one."""
    lines = re.split(r"\r?\n", text)
    return lines if lines[-1] else lines[:-1]


def checked_text(value: object, name: str) -> str:
    """``value`` if it is a text that can be tokenized and printed; else InputError, which calls it ``name``."""
    if not isinstance(value, str):
        raise InputError(f"{name} is a JSON {type(value).__name__}, not a text", cause="not a text")
    _check_surrogates(value, name)
    if "\0" in value:
        raise InputError(f"{name} holds a NUL letter, which no text has; is its file damaged?", cause="NUL in a text")
    return value


def parse_json(text: str | bytes) -> object:
    """The one value of a JSON text; bytes are decoded by :func:`decode_text`, a mark before the text is passed over.

    NaN and Infinity are read as Python writes them. Raises InputError for what is no JSON or goes on after its value, a key that
    stands twice in an object, half a surrogate pair, nesting beyond MAX_DEPTH, and a number of more than 4300 digits.
    """
    text = decode_text(text, "the JSON") if isinstance(text, bytes) else text.removeprefix(MARK)
    if text.count("[") + text.count("{") > MAX_DEPTH and (depth := _depth(text)) > MAX_DEPTH:
        raise InputError(f"JSON nested {depth} deep; at most {MAX_DEPTH} is read", cause="JSON nested too deep")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = repr(text[error.pos : error.pos + LETTERS_SHOWN]) if error.pos < len(text) else "its end"
        problem = "one value expected, and more follows" if error.msg == "Extra data" else error.msg
        raise InputError(f"no JSON: {problem} (letter {error.pos}: {found})", cause="no JSON") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"JSON with a number that is too long: {error}", cause="a number too long") from error
    _check_surrogates(text, "the JSON")
    if SURROGATE_ESCAPE.search(text):
        _check_surrogates(json.dumps(value, ensure_ascii=False), "the JSON")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    item = dict(pairs)
    if len(item) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"JSON with the key {twice!r} twice in one object; keep one", cause="a JSON key twice")
    return item


def _check_surrogates(text: str, name: str) -> None:
    if half := SURROGATE.search(text):
        raise InputError(
            f"{name} holds half a surrogate pair, \\u{ord(half[0]):x}, which is no letter; write the text as UTF-8 again",
            cause="half a surrogate pair",
        )


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in STRUCTURE.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        deepest = max(deepest, depth)
    return deepest
