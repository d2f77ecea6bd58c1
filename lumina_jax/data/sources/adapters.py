"""Published forms of records -> Lumina's form (see JsonSource): pure functions from JSON values to JSON values.

A value of an unknown form is returned unchanged; reading it as Lumina's form then fails with a reason.
"""

import re
from collections.abc import Callable, Mapping

from lumina_jax.conversation import SPEAKERS, literal
from lumina_jax.errors import InputError
from lumina_jax.vocab import IMAGE_SYMBOL

LLAVA_IMAGE = "<image>"
PAIR_IMAGES = (
    *("image", "images", "image_path", "img_path", "file_name", "path", "image_url", "url", "img"),
    *("image_name", "filename", "filepath", "jpg", "jpeg", "png", "webp"),
)
PAIR_CAPTIONS = ("caption", "text", "prompt", "txt", "captions", "title", "description", "comment")
"""Keys of published image-text pairs, as :func:`column_name` writes them, the likeliest first."""


def column_name(key: object) -> str:
    """A key as PAIR_IMAGES and PAIR_CAPTIONS write it: in small letters, with _ for blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", str(key).strip().lower())


def openhermes(item: object) -> object:
    """Text dialogues as OpenHermes-2.5 publishes them; the system message is put before the first human message.

    There are no images, so no text stands for one.
    """
    return _dialogue(item, None)


def mini_gemini(item: object) -> object:
    """Dialogues about images as LLaVA and Mini-Gemini publish them: ``<image>`` of a human message stands for an image.

    In answers, and in dialogues without images, ``<image>`` is text.
    """
    return _dialogue(item, item.get("image")) if isinstance(item, Mapping) else item


def dialogue(item: object) -> object:
    """A dialogue in Lumina's form if it has images and contains ``<|image|>``, else in LLaVA's or OpenHermes's form."""
    if not isinstance(item, Mapping) or (item.get("image") and IMAGE_SYMBOL in str(item.get("conversations"))):
        return item
    return mini_gemini(item)


def pair(item: object) -> object:
    """An image and its caption under any of the published keys; of a list of captions the first is taken."""
    if not isinstance(item, Mapping) or item.get("conversations") is not None:
        return item
    caption = _first_of(item, PAIR_CAPTIONS)
    if caption is None:
        return item
    caption = caption[0] if isinstance(caption, list) and caption else caption
    return {"image": _first_of(item, PAIR_IMAGES), "caption": caption}


def imagefolder(item: object) -> object:
    """A row of the metadata of a Hugging Face image folder: ``file_name``, and a caption or a dialogue."""
    if not isinstance(item, Mapping):
        return item
    images = item.get("file_name", item.get("file_names"))
    if item.get("conversations") is not None:
        return dialogue({"image": images, "conversations": item["conversations"]})
    return pair({"image": images} | {name: item[name] for name in item if column_name(name) in PAIR_CAPTIONS})


def _dialogue(item: object, images: object) -> object:
    if not isinstance(item, Mapping) or not isinstance(item.get("conversations"), list):
        return item
    messages = [_mark_images(message, images) for message in item["conversations"]]
    if messages and _speaker(messages[0]) == "system":
        system, *messages = messages
        system_text = system.get("value")
        if system_text is not None and not isinstance(system_text, str):
            return item
        if messages and system_text and system_text.strip():
            messages[0] = _map_text(messages[0], lambda text: f"{system_text.strip()}\n\n{text}")
    return {"conversations": messages} | ({"image": images} if images else {})


def _mark_images(message: object, images: object) -> object:
    """A message in which only a human's ``<image>`` stands for an image, and only if there are ``images``."""
    message = _map_text(message, literal)
    if not images or _speaker(message) not in SPEAKERS[0]:
        return message
    return _map_text(message, lambda text: text.replace(LLAVA_IMAGE, IMAGE_SYMBOL))


def _speaker(message: object) -> object:
    return message.get("from") if isinstance(message, Mapping) else None


def _map_text(message: object, change: Callable[[str], str]) -> object:
    if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
        return message
    return {**message, "value": change(message["value"])}


def _first_of(item: Mapping, names: tuple[str, ...]) -> object:
    """The value of the first of ``names`` that is a key of ``item``; None without any, InputError when it has it twice."""
    values = [(column_name(key), value) for key, value in item.items() if value is not None]
    name = next((name for name in names if any(key == name for key, _ in values)), None)
    found = [value for key, value in values if key == name]
    if len(found) > 1:
        raise InputError(f"the key {name!r} stands twice; keep one", cause="a key twice")
    return found[0] if found else None
