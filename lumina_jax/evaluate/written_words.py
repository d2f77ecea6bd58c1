"""The words that a prompt asks to see in its picture, read back by an OCR package where one is installed."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import NamedTuple

from PIL import Image

from lumina_jax.errors import MissingPackageError

QUOTED = re.compile(r"""["“„]([^"“”„]+)["”“]|「([^」]+)」|『([^』]+)』|«([^»]+)»|(?<!\w)['‘]([^'‘’]+)['’](?!\w)""")
TESSERACT_LANGUAGES = ("eng", "chi_sim")
EASYOCR_LANGUAGES = ["ch_sim", "en"]
AUTO, NONE = "auto", "none"


class WordReader(NamedTuple):
    """``read`` gives all the words in a picture; ``name`` is that of its package."""

    name: str
    read: Callable[[Image.Image], str]


def _pytesseract() -> WordReader:
    try:
        import pytesseract
    except ImportError:
        raise MissingPackageError("pytesseract is not installed; pip install pytesseract") from None
    try:
        known = pytesseract.get_languages()
    except OSError as error:
        raise MissingPackageError(f"pytesseract finds no program tesseract; install tesseract-ocr ({error})") from error
    languages = "+".join(name for name in TESSERACT_LANGUAGES if name in known) or None
    return WordReader("pytesseract", lambda image: pytesseract.image_to_string(image, lang=languages))


def _easyocr() -> WordReader:
    try:
        import easyocr
    except ImportError:
        raise MissingPackageError("easyocr is not installed; pip install easyocr") from None
    try:
        reader = easyocr.Reader(EASYOCR_LANGUAGES, verbose=False)
    except OSError as error:
        raise MissingPackageError(f"easyocr cannot load or fetch its weights: {error}") from error
    return WordReader("easyocr", lambda image: " ".join(_easyocr_words(reader, image)))


def _easyocr_words(reader, image: Image.Image) -> list[str]:
    import numpy as np

    return reader.readtext(np.asarray(image.convert("RGB")), detail=0)


READERS: Mapping[str, Callable[[], WordReader]] = {"pytesseract": _pytesseract, "easyocr": _easyocr}
"""The OCR packages that are tried, in this order. easyocr fetches its weights the first time."""


def find_reader(name: str = AUTO) -> tuple[WordReader | None, str]:
    """(the reader ``name`` of READERS, or with AUTO the first that works; a line on which it is, or why there is none).

    Raises MissingPackageError where the reader that was asked for is not installed.
    """
    if name == NONE:
        return None, "the words are not read back"
    if name != AUTO:
        return READERS[name](), f"the words are read back by {name}"
    reasons = []
    for found, make in READERS.items():
        try:
            return make(), f"the words are read back by {found}"
        except MissingPackageError as error:
            reasons.append(str(error))
    return None, f"the words are not read back: {'; '.join(reasons)}"


def quoted(prompt: str) -> list[str]:
    """What stands in quotation marks in a prompt: the words to be seen."""
    return [next(filter(None, match.groups())) for match in QUOTED.finditer(prompt)]


def plain_words(text: str) -> str:
    """``text`` as it is compared: NFKC, small letters, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def edit_distance(truth: str, read: str) -> int:
    """The least number of letters to insert, delete or replace that makes ``read`` of ``truth`` (Levenshtein)."""
    row = list(range(len(read) + 1))
    for number, letter in enumerate(truth, start=1):
        above, row = row, [number]
        for column, other in enumerate(read, start=1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (letter != other)))
    return row[-1]


def score_words(prompt: str, read: str) -> dict[str, str | bool | float]:
    """What was asked for (``words``), what was ``read``, whether both are ``exact``ly the same as :func:`plain_words`, and the
    ``character_error_rate``: the edit distance of all that was read over the letters asked for, which may exceed 1.

    Empty where the prompt quotes no words.
    """
    if not (words := " ".join(quoted(prompt))):
        return {}
    truth, seen = plain_words(words), plain_words(read)
    rate = edit_distance(truth, seen) / len(truth)
    return {"words": words, "read": seen, "exact": truth == seen, "character_error_rate": rate}
