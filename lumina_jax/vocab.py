"""Text <-> ids, the special tokens and the image codes, all looked up by name in the tokenizer file."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from lumina_jax.errors import InputError, MissingFileError

BEGIN = "<s>"
BEGIN_IMAGE = "<racm3:break>"
END_IMAGE = "<eoss>"
END_OF_TURN = "<reserved08706>"
END_OF_LINE = "<reserved08799>"
IMAGE_SYMBOL = "<|image|>"
MARKERS = (BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_TURN, END_OF_LINE, IMAGE_SYMBOL)
FILE_NAMES = ("tokenizer.json", "text_tokenizer.json")
FOLDERS = (".", "tokenizer", "original_tokenizers")


def image_code_name(code: int) -> str:
    """The token name of an image code: its decimal digits as letters A to J (Chameleon's vocab.py)."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def size_name(units: int) -> str:
    """The token name of a height or width of ``units`` size units (of 32 pixels in the published models)."""
    return f"<reserved{8800 + units:05d}>"


class Vocab:
    """A tokenizer whose names follow Chameleon's.

    ``tokenizers`` does the text; this class adds what the model needs: the ids of the markers, ``code_ids`` i32[E] (image
    code -> token id), ``code_of`` i32[V] (token id -> image code, -1 elsewhere) and ``size_of`` i32[V] (token id -> size
    units, -1 elsewhere).
    """

    def __init__(self, tokenizer: Tokenizer, source: str = "tokenizer"):
        if tokenizer.token_to_id(IMAGE_SYMBOL) is None:
            # The original adds it too; it only ever marks a place in text, and may lie beyond the model's vocabulary.
            tokenizer.add_tokens([AddedToken(IMAGE_SYMBOL, special=True, normalized=False)])
        self._tokenizer = tokenizer
        self.source = source
        self.bos = self.id_of(BEGIN)
        self.boi = self.id_of(BEGIN_IMAGE)
        self.eoi = self.id_of(END_IMAGE)
        self.end_of_turn = self.id_of(END_OF_TURN)
        self.newline = self.id_of(END_OF_LINE)
        self.image_symbol = self.id_of(IMAGE_SYMBOL)

    @classmethod
    def load(cls, path) -> "Vocab":
        """Reads a tokenizer file, or finds one in a folder (also in its tokenizer/ or original_tokenizers/).

        Raises FileNotFoundError naming the places tried, ValueError when the file is not a Chameleon-style tokenizer.
        """
        path = Path(path)
        tried = [path] if path.is_file() else [path / folder / name for folder in FOLDERS for name in FILE_NAMES]
        found = next((candidate for candidate in tried if candidate.is_file()), None)
        if found is None:
            raise MissingFileError(
                f"no tokenizer at {path}; looked for {', '.join(str(t) for t in tried)}. "
                "The published Lumina-mGPT folders hold it as original_tokenizers/text_tokenizer.json."
            )
        try:
            tokenizer = Tokenizer.from_file(str(found))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InputError(f"{found} is not a tokenizers JSON file: {error}") from error
        return cls(tokenizer, str(found))

    def __eq__(self, other: object) -> bool:
        """Equal tokenizers are equal: a program compiled for one serves the other."""
        return isinstance(other, Vocab) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Text to ids, without a begin token; names of special tokens inside the text become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_literally(self, text: str) -> list[int]:
        """Text to ids, none of them special: a special token's name inside the text is spelled like any other word.

        Text without such a name gets the ids of :meth:`encode`. Decoding gives the text back, names included.
        """
        return self._literally(text, self._tokenizer.encode(text, add_special_tokens=False))

    def encode_all(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Each of ``texts`` -> its ids as of :meth:`encode_literally`, each encoded once, on all cores together."""
        texts = list(dict.fromkeys(texts))
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return {text: self._literally(text, encoding) for text, encoding in zip(texts, encodings, strict=True)}

    def _literally(self, text: str, encoding: Encoding) -> list[int]:
        if self._special.keys().isdisjoint(encoding.ids):
            return encoding.ids
        places = zip(encoding.ids, encoding.offsets, strict=True)
        # Cut behind its first letter a name is none any more, and no letter is lost.
        cuts = [start + 1 for i, (start, stop) in places if text[start:stop] == self._special.get(i)]
        if not cuts:
            return encoding.ids
        return [i for start, stop in pairwise([0, *cuts, len(text)]) for i in self.encode_literally(text[start:stop])]

    def decode(self, ids) -> str:
        """Ids to text; special tokens appear by name."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def id_of(self, name: str) -> int:
        """The id of a token by its exact name."""
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise InputError(f"{self.source} has no token {name!r}; it is not a Chameleon-style tokenizer")
        return found

    def names(self, rows: int) -> dict[str, int]:
        """Every token's name -> id, of those below ``rows``."""
        named = self._tokenizer.get_vocab(with_added_tokens=True)
        return {name: i for name, i in sorted(named.items(), key=lambda at: at[1]) if i < rows}

    def has(self, name: str) -> bool:
        """Whether a token of this exact name exists."""
        return self._tokenizer.token_to_id(name) is not None

    def size_id(self, units: int) -> int:
        """The token of a height or width, in size units."""
        if not self.has(size_name(units)):
            largest = self.size_of.max()
            raise InputError(f"a height or width of {units} size units; {self.source} has tokens for 1 to {largest}")
        return self.id_of(size_name(units))

    def check_fits(self, rows: int) -> None:
        """Raises ValueError when a model of ``rows`` vocabulary rows lacks some of this tokenizer's ids."""
        needed = max(int(self.code_ids.max()), self._tokenizer.get_vocab_size(with_added_tokens=False) - 1) + 1
        if rows < needed:
            raise InputError(
                f"model.vocab={rows}, but {self.source} has ids up to {needed - 1}; set model.vocab={needed}"
            )

    @cached_property
    def code_ids(self) -> np.ndarray:
        ids = []
        while (found := self._tokenizer.token_to_id(image_code_name(len(ids)))) is not None:
            ids.append(found)
        if not ids:
            raise InputError(f"{self.source} has no image tokens ({image_code_name(0)} ...); use a Chameleon tokenizer")
        return np.array(ids, np.int32)

    @cached_property
    def code_of(self) -> np.ndarray:
        codes = np.full(self._rows, -1, np.int32)
        codes[self.code_ids] = np.arange(len(self.code_ids))
        return codes

    @cached_property
    def size_of(self) -> np.ndarray:
        sizes = np.full(self._rows, -1, np.int32)
        units = 1
        while (found := self._tokenizer.token_to_id(size_name(units))) is not None:
            sizes[found] = units
            units += 1
        return sizes

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that differ between any two tokenizers: token data remember which one made them."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    @cached_property
    def _special(self) -> dict[int, str]:
        """Id -> name of what text must not become: the tokenizer's special tokens, the sizes and the image codes."""
        added = {i: token.content for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        codes = {int(i): image_code_name(code) for code, i in enumerate(self.code_ids)}
        sizes = {int(i): size_name(int(self.size_of[i])) for i in np.flatnonzero(self.size_of > 0)}
        markers = {self.id_of(name): name for name in MARKERS}
        return {i: name for i, name in (added | codes | sizes | markers).items() if len(name) > 1}

    @cached_property
    def _rows(self) -> int:
        """One more than the largest id: added tokens need not be dense."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
