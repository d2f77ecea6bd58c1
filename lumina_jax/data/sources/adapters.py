"""Published forms of records -> Lumina's (see JsonSource): pure functions from one JSON value to another.

What they do not know they leave as it is, to be refused with a reason where Lumina's form is read.
"""

from collections.abc import Callable, Mapping

from lumina_jax.conversation import literal
from lumina_jax.data.sources.record import SPEAKERS
from lumina_jax.vocab import IMAGE_SYMBOL

LLAVA_IMAGE = "<image>"
PAIR_IMAGES = (
    *("image", "images", "image_path", "img_path", "file_name", "path", "image_url", "url", "img"),
    *("jpg", "jpeg", "png", "webp"),
)
PAIR_CAPTIONS = ("caption", "text", "prompt", "txt", "captions", "title", "description")
"""Names, whatever their case, under which image-text pairs are published, the likeliest first."""


def openhermes(item: object) -> object:
    """Text dialogues as OpenHermes-2.5 publishes them: what its system says goes before the first human message.

    No text gives its place to an image: there are none.
    """
    return _dialogue(item, None)


def mini_gemini(item: object) -> object:
    """Dialogues about images as LLaVA and Mini-Gemini publish them: a human's ``<image>`` is the place of an image.

    Without images ``<image>`` is text, and so it is in an answer.
    """
    return _dialogue(item, item.get("image")) if isinstance(item, Mapping) else item


def dialogue(item: object) -> object:
    """A dialogue in Lumina's form, if it has images and says ``<|image|>``, or else in LLaVA's or OpenHermes's."""
    if not isinstance(item, Mapping) or (item.get("image") and IMAGE_SYMBOL in str(item.get("conversations"))):
        return item
    return mini_gemini(item)


def pair(item: object) -> object:
    """An image and its caption under any of the names they are published by; a list of captions counts as its first."""
    if not isinstance(item, Mapping) or "conversations" in item:
        return item
    caption = _first_of(item, PAIR_CAPTIONS)
    caption = caption[0] if isinstance(caption, list) and caption else caption
    return {"image": _first_of(item, PAIR_IMAGES), "caption": caption}


def imagefolder(item: object) -> object:
    """A row of the metadata of a Hugging Face image folder: the file under ``file_name``, a caption or a dialogue beside."""
    if not isinstance(item, Mapping):
        return item
    images = item.get("file_name", item.get("file_names"))
    if "conversations" in item:
        return dialogue({"image": images, "conversations": item["conversations"]})
    return pair({"image": images} | {name: item[name] for name in item if name.lower() in PAIR_CAPTIONS})


def _dialogue(item: object, images: object) -> object:
    if not isinstance(item, Mapping) or not isinstance(item.get("conversations"), list):
        return item
    messages = [_placed(message, images) for message in item["conversations"]]
    if messages and _speaker(messages[0]) == "system":
        system, *messages = messages
        said = system.get("value")
        if messages and isinstance(said, str) and said.strip():
            messages[0] = _changed(messages[0], lambda text: f"{said.strip()}\n\n{text}")
    return {"conversations": messages} | ({"image": images} if images else {})


def _placed(message: object, images: object) -> object:
    """A message in which nothing but a human's ``<image>`` is the place of an image, and that only if there are any."""
    message = _changed(message, literal)
    if not images or _speaker(message) not in SPEAKERS[0]:
        return message
    return _changed(message, lambda text: text.replace(LLAVA_IMAGE, IMAGE_SYMBOL))


def _speaker(message: object) -> object:
    return message.get("from") if isinstance(message, Mapping) else None


def _changed(message: object, change: Callable[[str], str]) -> object:
    if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
        return message
    return {**message, "value": change(message["value"])}


def _first_of(item: Mapping, names: tuple[str, ...]) -> object:
    """What stands under the first of ``names`` that ``item`` has."""
    found = {str(key).lower(): value for key, value in item.items() if value is not None}
    return next((found[name] for name in names if name in found), None)
