"""A dialog with a model: words and pictures in, words and pictures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Unpack

from PIL import Image

from lumina_jax.conversation import requested_size
from lumina_jax.face.loading import LoadedModel
from lumina_jax.face.settings import SamplingSettings, settings_for
from lumina_jax.numbers import pixel_size
from lumina_jax.pictures.viewer import as_shown
from lumina_jax.sample.dialog import Dialog
from lumina_jax.sample.job import seed_key
from lumina_jax.sample.live import LiveChat, Words
from lumina_jax.sample.prompt import FREE_FORM


@dataclass(frozen=True)
class Reply:
    """An answer: its text, "" where there is none, and its pictures in RGB."""

    text: str
    pictures: tuple[Image.Image, ...]


class Chat:
    """A dialog that keeps all its turns, as ``run.py sample --chat`` holds it with the same ``seed`` and ``settings``.

    A turn counts once it has been answered: where :meth:`say` raises, the dialog is what it was.
    """

    def __init__(self, loaded: LoadedModel, *, seed: int = 0, **settings: Unpack[SamplingSettings]):
        self._loaded, self._settings = loaded, settings_for(settings, loaded.settings)
        self._chat = LiveChat(loaded.model, loaded.prompts, seed_key(index(seed)), self._settings(FREE_FORM))

    @property
    def dialog(self) -> Dialog:
        """The turns and pictures so far."""
        return self._chat.dialog

    def say(self, text: str, images: Sequence[Image.Image] = (), *, size: str | tuple[int, int] | None = None) -> Reply:
        """The answer to a message. The ``images`` replace the ``<|image|>`` of the text, or stand before it.

        With a ``size``, (width, height) in px or "WIDTHxHEIGHT", the answer begins with a picture of it; a text that asks for one
        in the words of :meth:`paint` says the size itself. Raises InputError naming what is wrong with the message.
        """
        chat, before = self._chat, len(self._chat.dialog.pictures)
        asked = pixel_size(size) if isinstance(size, str) else size or requested_size(text)
        cfg = self._settings("generate") if asked else None
        with self._loaded.on_mesh():
            seen = [as_shown(image) for image in images]
            words = [event.text for event in chat.say(text, seen, size=asked, cfg=cfg) if isinstance(event, Words)]
        painted = chat.dialog.pictures[before + len(images) :]
        return Reply("".join(words).strip(), tuple(picture.image for picture in painted))

    def paint(self, caption: str, *, size: str | tuple[int, int] | None = None) -> Reply:
        """The answer to a request for a picture of ``caption`` at ``size`` (default: the square of the model's area)."""
        asked = (pixel_size(size) if isinstance(size, str) else size) or self._loaded.prompts.square
        return self.say(self._loaded.prompts.request(caption, asked), size=asked)

    def clear(self) -> None:
        """Forgets all turns."""
        self._chat.begin()
