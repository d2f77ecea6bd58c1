"""From what a person types to PNGs: prompts with a size in, a folder of pictures and one line of JSON per prompt out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.layout import CODES_PER_UNIT, best_crop, crop_sizes, grid_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.pixels import to_image
from lumina_jax.sample.decode import generate
from lumina_jax.sample.picture import Broken, Decoder, grid, split
from lumina_jax.vocab import Vocab

RECORD = "samples.jsonl"
BATCH = 16
TOKENS_AROUND = 16
"""Room in an answer for what a model says beside its picture."""


@dataclass(frozen=True)
class Job:
    """What to paint. ``size`` (width, height) in px goes into each prompt and, unless ``free_size``, is forced.

    ``size`` None gives the prompts to the model as they are: dialog, with pictures wherever the model puts them.
    Prompt i draws from ``fold_in(key(seed), i)``, whatever is painted beside it.
    """

    prompts: tuple[str, ...]
    size: tuple[int, int] | None
    seed: int
    cfg: SampleConfig
    free_size: bool = False


def check_size(size: tuple[int, int], stride: int, vocab: Vocab, data: DataConfig | None) -> None:
    """Raises ValueError, naming the nearest size the model was trained on, when no tokens can say ``size`` (width, height)."""
    unit, most = stride * CODES_PER_UNIT, int(vocab.size_of.max())
    if any(side % unit or not unit <= side <= unit * most for side in size):
        known = crop_sizes(data.size, data.patch, data.max_ratio) if data else crop_sizes(512, unit)
        nearest = best_crop((max(size[0], 1), max(size[1], 1)), known)
        raise ValueError(
            f"size {size[0]}x{size[1]}: both sides must be multiples of {unit} px, from {unit} to {unit * most}; "
            f"the nearest that the model was trained on is {nearest[0]}x{nearest[1]}"
        )


def paint(
    model: Chameleon, vq: Decoder, vocab: Vocab, job: Job, out: Path, sheet: bool = False
) -> Iterator[tuple[Path, str]]:
    """Yields (path, text) of each picture as its batch is done; text answers come with the path of the record.

    Writes ``out``/NNN-K.png (picture K of prompt NNN), samples.jsonl, and grid.png when ``sheet`` is set.
    """
    out.mkdir(parents=True, exist_ok=True)
    keys = [jax.random.fold_in(jax.random.key(job.seed), index) for index in range(len(job.prompts))]
    images: list[Image.Image] = []
    captions: list[str] = []
    with (out / RECORD).open("w") as record:
        for start in range(0, len(job.prompts), BATCH):
            part = range(start, min(start + BATCH, len(job.prompts)))
            answers = _answers(model, vq, vocab, job, part, [keys[index] for index in part])
            for index, answer in zip(part, answers, strict=True):
                painted, said, broken = _read(answer, vq, vocab)
                paths = [out / f"{index:03d}-{number}.png" for number in range(len(painted))]
                for image, path in zip(painted, paths, strict=True):
                    image.save(path)
                    images.append(image)
                    captions.append(job.prompts[index])
                line = dict(prompt=job.prompts[index], seed=job.seed, files=[path.name for path in paths], text=said)
                record.write(json.dumps(line | ({"broken": broken} if broken else {})) + "\n")
                yield from [(path, said) for path in paths] or [(out / RECORD, said or "; ".join(broken))]
    if sheet and images:
        path = out / "grid.png"
        grid(images, columns=min(4, len(images)), captions=captions).save(path)
        yield path, ""


def _answers(
    model: Chameleon, vq: Decoder, vocab: Vocab, job: Job, part: Sequence[int], keys: list[jax.Array]
) -> list[np.ndarray]:
    if job.size is None:
        ids = [tokenize([(job.prompts[index], None)], [], vocab)[0] for index in part]
        return generate(model, ids, keys[0], job.cfg, vocab, keys=keys)
    ids = [tokenize([(image_prompt(*job.size, job.prompts[index]), None)], [], vocab)[0] for index in part]
    if job.free_size:
        return generate(model, ids, keys[0], job.cfg, vocab, keys=keys)
    cols, rows = (side // vq.stride for side in job.size)
    cfg = replace(job.cfg, max_new_tokens=min(job.cfg.max_new_tokens, grid_tokens(rows, cols) + TOKENS_AROUND))
    return generate(model, ids, keys[0], cfg, vocab, sizes=[(rows, cols)] * len(ids), keys=keys)


def _read(answer: np.ndarray, vq: Decoder, vocab: Vocab) -> tuple[list[Image.Image], str, list[str]]:
    """An answer's pictures, its text, and why any picture in it could not be read."""
    pieces = split(answer, vocab)
    codes = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    said = " ".join(piece.strip() for piece in pieces if isinstance(piece, str)).strip()
    broken = [piece.reason for piece in pieces if isinstance(piece, Broken)]
    return [to_image(np.asarray(vq.decode(c[None]))[0]) for c in codes], said, broken
