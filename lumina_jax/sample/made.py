"""All that decides a painted picture, as its file and its line in samples.jsonl tell it, and the same picture again from that."""

import base64
import binascii
import reprlib
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import jax
import numpy as np

from lumina_jax.config import SampleConfig, from_dict
from lumina_jax.conversation import TASKS
from lumina_jax.errors import InputError, require
from lumina_jax.layout import grid_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.model.image_tokenizer import fingerprint as vq_fingerprint
from lumina_jax.model.params import fingerprint
from lumina_jax.sample.prompt import Prompt, PromptBuilder
from lumina_jax.text import checked_text
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


def prompt_again(made: Mapping[str, object], builder: PromptBuilder, label: str) -> Prompt:
    """The prompt whose answer holds the picture of ``made`` (:func:`made_picture`), with its seed and the place of its key.

    ``made`` comes from a file of strangers: nothing in it is believed that ``builder`` would not have made. Raises InputError, its
    message beginning with ``label``, where something is lacking, of another kind, or more than the model takes.
    """
    try:
        (index, copy), settings = made["key"], made["settings"]
        size = (_whole(made, "rows"), _whole(made, "cols")) if made["rows"] is not None else None
        prompt = Prompt(
            checked_text(made["prompt"], "prompt"),
            _ids(made["ids"], builder),
            size,
            from_dict(SampleConfig, settings),
            made["seed"],
            _whole(made, "tokens"),
            made["task"],
            (_whole({"key": index}, "key"), _whole({"key": copy}, "key")),
        )
        require(type(prompt.seed) is int, f"seed is {reprlib.repr(prompt.seed)}; it must be a whole number")
        require(isinstance(prompt.task, str) and prompt.task in TASKS, f"there is no task {reprlib.repr(prompt.task)}")
        if size:
            builder.check_paintable((size[1] * builder.vq.stride, size[0] * builder.vq.stride))
            tokens = grid_tokens(*size, builder.vocab.image_layout)
            require(prompt.picture == tokens, f"a picture of {size[0]} x {size[1]} codes takes {tokens:,} tokens")
        builder.check_length(prompt.length, "it cannot be painted again")
        return prompt
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise InputError(
            f"{label} does not tell all that its picture needs: {type(error).__name__}: {error}"
        ) from error


def _whole(made: Mapping[str, object], name: str) -> int:
    """The number ``name``, at least 0 and of at most 31 bits."""
    value = made[name]
    if type(value) is not int or not 0 <= value < 2**31:
        raise InputError(f"{name} is {reprlib.repr(value)}; it must be a whole number from 0 to {2**31 - 1:,}")
    return value


def _ids(packed: object, builder: PromptBuilder) -> np.ndarray:
    """The tokens i32[P] of :func:`made_picture`; no more is unpacked than the longest prompt has."""
    most, unpacking = builder.longest * IDS.itemsize, zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(packed), most + 1)
    if len(content) > most:
        raise InputError(f"ids holds more than the {builder.longest:,} tokens that the longest prompt has")
    ids, known = np.frombuffer(content, IDS).astype(np.int32), len(builder.vocab.code_of)
    if not unpacking.eof or not len(ids) or ids.min() < 0 or ids.max() >= known:
        raise InputError(f"ids is cut short, or holds other tokens than 0 to {known - 1:,}")
    return ids


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
