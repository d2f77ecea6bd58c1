"""Showing an answer while it is sampled: text as it comes, pictures line by line."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.conversation import explicit, tokenize
from lumina_jax.errors import InputError
from lumina_jax.layout import answer_tokens, decode_lines
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.sample.dialog import Dialog, DialogPicture
from lumina_jax.sample.picture import spoken
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sample.stream import stream
from lumina_jax.vocab import Vocab

BLANK = (208, 208, 208)
"""The colour of lines that are not sampled yet."""
UNFINISHED = "\ufffd"
"""What a decoder writes for the first bytes of a letter whose other bytes have not come yet."""


class Words(NamedTuple):
    """Text that continues the last."""

    text: str


class Preview(NamedTuple):
    """Picture ``number`` of the answer, of which ``lines`` of ``total`` lines of codes are painted and the rest is blank."""

    number: int
    picture: Image.Image
    lines: int
    total: int


def watch(
    model: Chameleon,
    vq: ImageTokenizer,
    vocab: Vocab,
    prompt: np.ndarray,
    key: jax.Array,
    cfg: SampleConfig,
    *,
    size: tuple[int, int] | None = None,
    opens: bool = False,
    every: int = 16,
) -> Iterator[Words | Preview]:
    """The answer to a prompt i32[P], drawn with the row's own ``key`` and shown after every ``every`` passes.

    The texts joined are the answer's text; the last preview of each picture is the picture. ``size`` (rows, cols) is forced on
    pictures; with ``opens`` the answer begins with one. A picture whose tokens break the image-token rule ends with the last
    preview before that.
    """
    answer = Growing(vq, vocab)
    options = dict(sizes=[size], keys=[key], rows=1, every=every, opens=[opens])
    for partial in stream(model, [prompt], key, cfg, vocab, **options):
        yield from answer.grow(partial.tokens, partial.done)


class LiveChat:
    """A dialog: each turn is answered with all turns and pictures before it in the prompt; turn n draws from fold_in(key, n).

    ``dialog`` holds its turns and pictures. What stands in a later prompt is what tokenize makes of them, so a chat that begins
    with the dialog of another goes on as that one does.
    """

    def __init__(
        self, model: Chameleon, builder: PromptBuilder, key: jax.Array, cfg: SampleConfig, dialog: Dialog | None = None
    ):
        self._model, self._builder, self._key, self._cfg = model, builder, key, cfg
        self.begin(dialog or Dialog())

    def begin(self, dialog: Dialog | None = None) -> None:
        """Forgets all turns and goes on with those of ``dialog``. Raises InputError when its last message has no answer."""
        dialog = dialog or Dialog()
        if not dialog.ended:
            raise InputError("the last message of the dialog has no answer; remove the message, or give it as a prompt")
        self.dialog = dialog

    @property
    def tokens(self) -> int:
        """The number of tokens of all turns and answers so far."""
        turns, grids = self.dialog.turns, self.dialog.grids
        return len(tokenize(turns, grids, self._builder.vocab)[0]) if turns else 0

    def say(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        *,
        size: tuple[int, int] | None = None,
        cfg: SampleConfig | None = None,
        every: int = 16,
    ) -> Iterator[Words | Preview]:
        """The answer, as :func:`watch` yields it; the turn counts once it has ended. Raises what PromptBuilder.history raises.

        The images replace the ``<|image|>`` of the text, or stand before it. ``size`` (width, height) in px: of a picture that the
        answer begins with. ``cfg``: settings of this answer alone.
        """
        builder, vocab, dialog = self._builder, self._builder.vocab, self.dialog
        message = explicit(text, len(images))
        pictures = (*dialog.pictures, *map(builder.shown, images))
        grids = [picture.codes for picture in pictures]
        prompt = builder.history([*dialog.turns, (message, None)], grids, cfg or self._cfg, size)
        cfg = prompt.cfg.limited(answer_tokens([prompt.size], vocab.image_layout)) if prompt.size else prompt.cfg
        self.asked = replace(prompt, cfg=cfg, place=(len(dialog.turns), 0))
        key = jax.random.fold_in(self._key, len(dialog.turns))
        options = dict(sizes=[prompt.size], keys=[key], rows=1, every=every, opens=[prompt.size is not None])
        answer = Growing(builder.vq, vocab)
        for partial in stream(self._model, [prompt.ids], key, cfg, vocab, **options):
            yield from answer.grow(partial.tokens, partial.done)
        said, painted = spoken(partial.tokens, vocab)
        pictures += tuple(DialogPicture(decode_image(builder.vq, codes), codes) for codes in painted)
        self.dialog = Dialog((*dialog.turns, (message, said)), pictures)


class Growing:
    """An answer that grows, and what has been shown of it."""

    def __init__(self, vq: ImageTokenizer, vocab: Vocab):
        self._vq, self._vocab = vq, vocab
        self._text = ""
        self._lines: dict[int, int] = {}

    def grow(self, tokens: np.ndarray, done: bool) -> Iterator[Words | Preview]:
        """The text and the previews that are new in the answer i32[n]."""
        begins = np.flatnonzero(tokens == self._vocab.boi)
        text = self._vocab.decode(tokens[: begins[0]] if len(begins) else tokens)
        images = []
        for start, stop in itertools.pairwise([*begins, len(tokens)]):
            image = tokens[start:stop]
            end = int(np.argmax(image == self._vocab.eoi)) if (image == self._vocab.eoi).any() else len(image)
            images.append(image[:end])
            text += self._vocab.decode(image[end + 1 :])
        text = text if done else text.rstrip(UNFINISHED)
        if len(text) > len(self._text):
            yield Words(text[len(self._text) :])
            self._text = text
        for number, image in enumerate(images):
            if (preview := self._preview(number, image)) is not None:
                yield preview

    def _preview(self, number: int, image: np.ndarray) -> Preview | None:
        """A preview of picture ``number`` when it has new lines; ``image`` i32[n] from begin-image on, without end-image."""
        try:
            codes, total = decode_lines(image, self._vocab)
        except InputError:
            return None
        if len(codes) <= self._lines.get(number, 0):
            return None
        self._lines[number] = len(codes)
        # The last line is repeated in place of missing ones: decoders look at neighbours, and one shape is compiled.
        filled = np.concatenate([codes, np.repeat(codes[-1:], total - len(codes), axis=0)])
        picture = decode_image(self._vq, filled)
        picture.paste(BLANK, (0, len(codes) * self._vq.stride, *picture.size))
        return Preview(number, picture, len(codes), total)
