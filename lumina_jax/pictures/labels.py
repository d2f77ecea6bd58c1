"""Words beside pictures, broken into lines that fit by the measure of their font."""

import textwrap

from PIL import ImageFont

from lumina_jax.errors import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FEWEST = 8
"""Letters of a line, however narrow."""
NARROWEST = 4
"""In px: no line of words has more letters than this lets in."""


def wrapped(text: str, width: int, lines: int, font: Font) -> list[str]:
    """``text`` in at most ``lines`` lines, none wider than ``width`` px in ``font`` unless it has FEWEST letters."""
    text = printable(text)
    for letters in range(max(FEWEST, width // NARROWEST), FEWEST - 1, -1):
        broken = textwrap.wrap(text, letters, max_lines=lines, placeholder=" ...")
        if all(font.getlength(line) <= width for line in broken):
            break
    return broken
