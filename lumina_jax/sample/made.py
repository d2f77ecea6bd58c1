"""All that decides a painted picture, as its file and its line in samples.jsonl tell it, and the same picture again from that."""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import jax
import numpy as np

from lumina_jax.config import SampleConfig, from_dict
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.model.image_tokenizer import fingerprint as vq_fingerprint
from lumina_jax.model.params import fingerprint
from lumina_jax.sample.prompt import Prompt
from lumina_jax.vocab import Vocab

IDS = np.dtype("<i4")
COMPARED = {
    "weights": "--model",
    "dtype": "--dtype, --int8 or --int4",
    "vq_weights": "--vq",
    "tokenizer": "--tokenizer",
}
"""What must be the same to paint the same, and the option that gives it."""


@dataclass(frozen=True)
class PictureOrigin:
    """Where answers come from: the address ``model`` as it was given, the fingerprint of its ``weights`` and their dtypes, such as
    "bfloat16+int8"; the fingerprints of the image tokenizer and the tokenizer; versions and the kind of ``device``."""

    model: str
    weights: str
    dtype: str
    vq_weights: str
    tokenizer: str
    device: str
    lumina_jax: str
    jax: str = jax.__version__

    @classmethod
    def of(cls, address: str, model: Chameleon, vq: ImageTokenizer, vocab: Vocab, version: str) -> "PictureOrigin":
        """That of a loaded model; ``version`` is that of lumina_jax."""
        dtypes = "+".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(model)}))
        parts = (fingerprint(model), dtypes, vq_fingerprint(vq), vocab.fingerprint)
        return cls(address, *parts, jax.devices()[0].device_kind, version)


def made(origin: PictureOrigin | None, prompt: Prompt, seed: int, place: tuple[int, int]) -> dict[str, object]:
    """What decides the answer to ``prompt``, but for its tokens: ``seed`` and ``place``, the (index, copy) of its random key.

    ``rows`` and ``cols`` are the codes of the size that is forced, None where it is free.
    """
    rows, cols = prompt.size or (None, None)
    asked = {"prompt": prompt.text, "task": prompt.task, "rows": rows, "cols": cols, "seed": seed}
    return asked | {"key": [*place], "settings": asdict(prompt.cfg)} | (asdict(origin) if origin else {})


def made_picture(answer: Mapping[str, object], prompt: Prompt, number: int) -> dict[str, object]:
    """What decides picture ``number`` of an ``answer`` (:func:`made`): that, and the tokens of the prompt."""
    packed = base64.b64encode(zlib.compress(prompt.ids.astype(IDS).tobytes())).decode()
    return {**answer, "picture": number, "tokens": prompt.picture, "ids": packed}


def prompt_again(made: Mapping[str, object], label: str) -> Prompt:
    """The prompt whose answer holds the picture of ``made`` (:func:`made_picture`), with its seed and the place of its key.

    Raises InputError, its message beginning with ``label``, where ``made`` lacks something or is of another make.
    """
    try:
        ids = np.frombuffer(zlib.decompress(base64.b64decode(made["ids"])), IDS).astype(np.int32)
        size = (int(made["rows"]), int(made["cols"])) if made["rows"] is not None else None
        (index, copy), cfg = made["key"], from_dict(SampleConfig, made["settings"])
        place = int(index), int(copy)
        return Prompt(made["prompt"], ids, size, cfg, int(made["seed"]), int(made["tokens"]), made["task"], place)
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise InputError(
            f"{label} does not tell all that its picture needs: {type(error).__name__}: {error}"
        ) from error


def check_origin(made: Mapping[str, object], origin: PictureOrigin, label: str) -> str:
    """A line on what may change how numbers are rounded; "" for nothing.

    Raises InputError, its message beginning with ``label``, where ``origin`` is another model than that of ``made``.
    """
    here = asdict(origin)
    for name, option in COMPARED.items():
        if made.get(name) != here[name]:
            raise InputError(
                f"{label} was made with {name} {made.get(name)}, not {here[name]}; give that of its model {made.get('model')} "
                f"with {option}"
            )
    then = {name: made.get(name) for name in ("lumina_jax", "jax", "device")}
    other = [f"{name} {value}, now {here[name]}" for name, value in then.items() if value != here[name]]
    line = f"{label} was made with {', '.join(other)}: the picture may differ where numbers are rounded otherwise"
    return line if other else ""
