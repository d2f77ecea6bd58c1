"""Photos for small copies of the published sets, the reasons of bad records, and the original's packing, implemented again."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from data_parts import noise
from PIL import Image

from lumina_jax.data.sources import Source
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab


def photo(path: Path, size=(64, 48), seed=0) -> Path:
    """Writes noise without magenta, the colour of boxes, as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(noise(size, seed)) // 2).save(path)
    return path


def file_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, values: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def colours(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def is_file(image: Image.Image, path: Path) -> bool:
    return np.array_equal(colours(image), colours(Image.open(path)))


def reason(source: Source, index: int) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        source[index]
    return str(error.value)


def packed(turns, grids, vocab: Vocab) -> tuple[list[int], list[int]]:
    """Tokens and labels as FlexARItemProcessor makes them: <s>, then each message and <reserved08706>, no role names."""
    symbols = {name: vocab.id_of(name) for name in ("<s>", "<racm3:break>", "<eoss>", "<reserved08706>")}
    line, images = vocab.id_of("<reserved08799>"), iter(grids)
    tokens, labels = [symbols["<s>"]], [-100]
    for number, message in enumerate(text for turn in turns for text in turn):
        message_tokens = []
        for number_of_part, words in enumerate(message.split(IMAGE_SYMBOL)):
            if number_of_part:
                grid = next(images)
                rows, columns = grid.shape
                message_tokens += [symbols["<racm3:break>"], 8804 + rows // 2, 8804 + columns // 2]
                for row in grid:
                    message_tokens += [4 + int(code) for code in row] + [line]
                message_tokens.append(symbols["<eoss>"])
            message_tokens += vocab.encode_literally(words)
        message_tokens.append(symbols["<reserved08706>"])
        tokens += message_tokens
        labels += message_tokens if number % 2 else [-100] * len(message_tokens)
    return tokens, labels
