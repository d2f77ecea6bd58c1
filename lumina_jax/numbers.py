"""Numbers as people write them: whole numbers, real numbers and sizes, with one rule for the command line, configs and prompts."""

import math
import re
import sys

from lumina_jax.errors import InputError

LARGEST = 2**63 - 1
"""The largest whole number that jax.random.key and numpy's generators and arrays take."""
FLOATS = ("float32", "bfloat16", "float16")
"""numpy's names of the dtypes that weights can have."""
DTYPES = dict(zip(FLOATS, FLOATS, strict=True)) | {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""All names of these dtypes -> numpy's."""
SHOWN_LETTERS = 40
"""What a message shows of a long value."""


def whole_number(text: str, minimum: int | None = 0, maximum: int = LARGEST) -> int:
    """The whole number that ``text`` writes in decimal digits of any script; ``1_000`` and spaces around it are allowed.

    Raises InputError for anything else, 1e3 and superscripts among it, and outside of ``minimum`` (None: that of 64 bits) to
    ``maximum``.
    """
    try:
        number = int(text)
    except ValueError:
        number = maximum + 1 if text.strip().isdecimal() else None  # int refuses more than 4,300 digits
    if number is not None and number > maximum:
        raise InputError(f"{shown(text)} is too large; give at most {maximum}")
    if number is None or number < (-LARGEST if minimum is None else minimum):
        raise InputError(
            f"{shown(text)} is not a whole number" + ("" if minimum is None else f" of at least {minimum}")
        )
    return number


def real_number(text: str, minimum: float = -math.inf) -> float:
    """The number that ``text`` writes; InputError for anything else, NaN and infinity among it, and below ``minimum``."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < minimum:
        limit = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise InputError(f"{shown(text)} is not a number{limit}, such as 0.5 or 1e-4")
    return number


def seed_number(text: str) -> int:
    """A seed; InputError for what jax.random.key or numpy's generators do not take."""
    try:
        return whole_number(text)
    except InputError as error:
        raise InputError(f"{shown(text)} is not a seed; give a whole number from 0 to {LARGEST}") from error


def any_seed(text: str) -> int:
    """A seed of any size and sign, as sampling takes it; InputError for what is no whole number."""
    try:
        return int(text)
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise InputError(f"{shown(text)} is not a seed; give a whole number of at most {digits:,} digits") from error


def pixel_size(text: str) -> tuple[int, int]:
    """ "96x64", also written with X, × or *, and with spaces -> (width, height); InputError for anything else."""
    width, _, height = re.sub(r"[X×*]", "x", text).partition("x")
    try:
        return whole_number(width), whole_number(height)
    except InputError as error:
        raise InputError(
            f"{shown(text)!r} is not WIDTHxHEIGHT in pixels, such as 96x64", cause="no WIDTHxHEIGHT"
        ) from error


def dtype_name(text: str) -> str:
    """numpy's name of the dtype that ``text`` names in one of the ways of DTYPES; InputError for any other."""
    if text not in DTYPES:
        raise InputError(f"{text!r} is no dtype of weights; give one of {', '.join(DTYPES)}")
    return DTYPES[text]


def shown(text: str) -> str:
    """``text``, shortened for a message."""
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
