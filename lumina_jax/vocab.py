"""Text <-> token ids. Special tokens, sizes and image codes are looked up by name in the tokenizer file."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.places import below, place

BEGIN = "<s>"
BEGIN_IMAGE = "<racm3:break>"
END_IMAGE = "<eoss>"
END_OF_TURN = "<reserved08706>"
END_OF_LINE = "<reserved08799>"
IMAGE_SYMBOL = "<|image|>"
WORD = re.compile(r"[^\W\d_]{2,}|[^\W\d_\x00-\x7f]")
"""Two letters or more, or one that is no ASCII."""
MARKERS = (BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_TURN, END_OF_LINE, IMAGE_SYMBOL)
FILE_NAMES = ("tokenizer.json", "text_tokenizer.json")
FOLDERS = (".", "tokenizer", "original_tokenizers")


@dataclass(frozen=True)
class ImageLayout:
    """How images stand in the token sequences of a model; :mod:`lumina_jax.layout` is the rule that follows from it.

    ``shape`` (rows, cols) is that of the codes of every image; None where each image says its own, with two size tokens and an
    end-of-line behind each row. ``no_pictures`` says why the model cannot answer with images, such as "its head is zero"; empty
    where it can.
    """

    name: str
    shape: tuple[int, int] | None = None
    no_pictures: str = ""

    @property
    def size_tokens(self) -> int:
        """The number of tokens behind begin-image that say height and width."""
        return 2 if self.shape is None else 0

    @property
    def line_ends(self) -> int:
        """The number of tokens behind each row of codes that say that it ends."""
        return 1 if self.shape is None else 0


UNI_REP = ImageLayout("lumina")
"""Lumina-mGPT's: images of any size (paper section 3.2.2)."""
CHAMELEON = ImageLayout("chameleon", (32, 32))
"""Chameleon's own: images of 512x512 pixels, 1,024 codes in one run (its paper, arXiv 2405.09818, section 2.1)."""
IMAGE_LAYOUTS = {image_layout.name: image_layout for image_layout in (UNI_REP, CHAMELEON)}


def image_code_name(code: int) -> str:
    """The token name of an image code: its decimal digits as letters A to J (Chameleon's vocab.py)."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def size_name(units: int) -> str:
    """The token name of a height or width of ``units`` size units (of 32 pixels in the published models)."""
    return f"<reserved{8800 + units:05d}>"


class Vocab:
    """A Hugging Face tokenizer whose token names follow Chameleon's.

    Besides text it knows the ids of the markers, ``code_ids`` i32[E] (image code -> token id), ``code_of`` i32[V] (token id
    -> image code, -1 elsewhere) and ``size_of`` i32[V] (token id -> size units, -1 elsewhere). ``image_layout`` says how a model
    arranges them in images.
    """

    def __init__(self, tokenizer: Tokenizer, source: str = "tokenizer", image_layout: ImageLayout = UNI_REP):
        if tokenizer.token_to_id(IMAGE_SYMBOL) is None:
            # As in the original. It is only a placeholder in text, so its id may exceed the model's vocabulary.
            tokenizer.add_tokens([AddedToken(IMAGE_SYMBOL, special=True, normalized=False)])
        self._tokenizer = tokenizer
        self.source = source
        self.image_layout = image_layout
        self.bos = self.id_of(BEGIN)
        self.boi = self.id_of(BEGIN_IMAGE)
        self.eoi = self.id_of(END_IMAGE)
        self.end_of_turn = self.id_of(END_OF_TURN)
        self.newline = self.id_of(END_OF_LINE)
        self.image_symbol = self.id_of(IMAGE_SYMBOL)

    @classmethod
    def load(cls, path, image_layout: ImageLayout = UNI_REP) -> "Vocab":
        """Reads a tokenizer file, or looks for one in a folder and its tokenizer/ and original_tokenizers/.

        Raises MissingFileError naming the paths tried, InputError when the file is not a Chameleon-style tokenizer.
        """
        path = place(path)
        candidates = (
            [path] if path.is_file() else [below(path, f"{folder}/{name}") for folder in FOLDERS for name in FILE_NAMES]
        )
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            raise MissingFileError(
                f"no tokenizer at {path}; looked for {', '.join(map(str, candidates))}. "
                "It is published as original_tokenizers/text_tokenizer.json of Alpha-VLLM/Chameleon_7B_mGPT on Hugging Face."
            )
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InputError(f"{file} is not a tokenizers JSON file: {error}") from error
        return cls(tokenizer, str(file), image_layout)

    def with_images(self, image_layout: ImageLayout) -> "Vocab":
        """The same tokens for a model whose images have ``image_layout``."""
        other = copy.copy(self)
        other.image_layout = image_layout
        return other

    def __eq__(self, other: object) -> bool:
        """Compares content, not identity: a program compiled for a vocabulary serves every equal one."""
        return isinstance(other, Vocab) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[str, ImageLayout]:
        return self.fingerprint, self.image_layout

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without a begin token. Names of special tokens inside the text become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_literally(self, text: str) -> list[int]:
        """Text -> ids without special tokens: the name of one inside the text is encoded as ordinary text.

        Text without such names gets the ids of :meth:`encode`. Decoding returns the text, names included.
        """
        return self._literal_ids(text, self._tokenizer.encode(text, add_special_tokens=False))

    def spelt_words(self, ids: Iterable[int]) -> list[str]:
        """The words in ``ids`` that a tokenizer of whole words does not know, and spells byte by byte.

        Empty for a tokenizer that joins bytes to parts of words, as Chameleon's does: it has no words that it does not know.
        """
        if self._joins_bytes:
            return []
        names = ((int(i), self._tokenizer.id_to_token(int(i)) or "") for i in ids)
        runs = groupby(names, key=lambda token: len(token[1]) == 1)
        texts = [self.decode(i for i, _ in run) for is_bytes, run in runs if is_bytes]
        return list(dict.fromkeys(word for text in texts for word in WORD.findall(text)))

    @cached_property
    def _joins_bytes(self) -> bool:
        return bool(json.loads(self._tokenizer.to_str())["model"].get("merges"))

    def encode_all(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Text -> ids as of :meth:`encode_literally`, for all ``texts`` in one parallel batch without duplicates."""
        texts = list(dict.fromkeys(texts))
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return {text: self._literal_ids(text, encoding) for text, encoding in zip(texts, encodings, strict=True)}

    def _literal_ids(self, text: str, encoding: Encoding) -> list[int]:
        if self._special.keys().isdisjoint(encoding.ids):
            return encoding.ids
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        # Split after its first letter, a name is no longer recognised; all letters are kept.
        cuts = [start + 1 for i, (start, stop) in spans if text[start:stop] == self._special.get(i)]
        if not cuts:
            return encoding.ids
        return [i for start, stop in pairwise([0, *cuts, len(text)]) for i in self.encode_literally(text[start:stop])]

    def decode(self, ids) -> str:
        """Ids -> text, with special tokens by name."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def id_of(self, name: str) -> int:
        """The id of the token with this exact name. Raises InputError when there is none."""
        token_id = self._tokenizer.token_to_id(name)
        if token_id is None:
            raise InputError(f"{self.source} has no token {name!r}; it is not a Chameleon-style tokenizer")
        return token_id

    def names(self, rows: int) -> dict[str, int]:
        """Token name -> id, ordered by id, for all ids below ``rows``."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        return {name: i for name, i in sorted(ids.items(), key=lambda item: item[1]) if i < rows}

    def has(self, name: str) -> bool:
        """Whether a token with this exact name exists."""
        return self._tokenizer.token_to_id(name) is not None

    def size_id(self, units: int) -> int:
        """The token id of a height or width of ``units`` size units. Raises InputError when the tokenizer has none."""
        if not self.has(size_name(units)):
            largest = self.size_of.max()
            raise InputError(f"a height or width of {units} size units; {self.source} has tokens for 1 to {largest}")
        return self.id_of(size_name(units))

    def check_fits(self, rows: int) -> None:
        """Raises InputError when some ids of this tokenizer exceed a model's ``rows`` vocabulary rows."""
        needed = max(int(self.code_ids.max()), self._tokenizer.get_vocab_size(with_added_tokens=False) - 1) + 1
        if rows < needed:
            raise InputError(
                f"model.vocab={rows}, but {self.source} has ids up to {needed - 1}; set model.vocab={needed}"
            )

    @cached_property
    def code_ids(self) -> np.ndarray:
        ids = []
        while (token_id := self._tokenizer.token_to_id(image_code_name(len(ids)))) is not None:
            ids.append(token_id)
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
        while (token_id := self._tokenizer.token_to_id(size_name(units))) is not None:
            sizes[token_id] = units
            units += 1
        return sizes

    @cached_property
    def special_ids(self) -> np.ndarray:
        """i32[n], sorted: the tokens that no text is encoded to."""
        return np.array(sorted(self._special), np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer, 16 hex digits: token data record which tokenizer made them."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    @cached_property
    def _special(self) -> dict[int, str]:
        """Id -> name of the tokens that text must not be encoded to: special tokens, sizes and image codes."""
        added = {i: token.content for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        codes = {int(i): image_code_name(code) for code, i in enumerate(self.code_ids)}
        sizes = {int(i): size_name(int(self.size_of[i])) for i in np.flatnonzero(self.size_of > 0)}
        markers = {self.id_of(name): name for name in MARKERS}
        return {i: name for i, name in (added | codes | sizes | markers).items() if len(name) > 1}

    @cached_property
    def _rows(self) -> int:
        """One more than the largest id; the ids of added tokens may have gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
