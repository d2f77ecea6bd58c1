"""Pictures from prompts."""

from collections.abc import Iterable, Sequence
from operator import index
from typing import Unpack

from PIL import Image

from lumina_jax.errors import InputError
from lumina_jax.face.loading import LoadedModel
from lumina_jax.face.settings import SamplingSettings, settings_for
from lumina_jax.numbers import pixel_size
from lumina_jax.pictures.viewer import as_shown
from lumina_jax.sample.job import Job, draw
from lumina_jax.sample.prompt import PAINTED, Prompt

PAINT = "generate"
"""The task of conversation.TASKS that paints a prompt."""


def generate(
    loaded: LoadedModel,
    prompts: str | Iterable[str],
    *,
    size: str | tuple[int, int] | None = None,
    seed: int = 0,
    per_prompt: int = 1,
    rows: int = 16,
    task: str = PAINT,
    images: Sequence[Image.Image] = (),
    **settings: Unpack[SamplingSettings],
) -> list[Image.Image]:
    """Paints ``prompts``: RGB pictures, ``per_prompt`` of the first prompt, then of the next.

    ``size`` is (width, height) in px or "WIDTHxHEIGHT" (default: the square of the area that the model was trained on). ``seed`` is
    any whole number. At most ``rows`` answers are sampled at a time; which does not change them. Another ``task`` that ends in a
    picture (edit, depth, ...) is done to ``images``, at the size of the last of them. ``settings`` are those of
    :class:`SamplingSettings`. The same words, size, seed and settings give the picture that ``run.py sample`` gives, bit by bit.

    Raises InputError naming what is wrong before anything is compiled, and when an answer lacks its picture.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or per_prompt < 1:
        raise InputError(f"{len(texts)} prompts, {per_prompt} pictures of each; give at least 1 of both")
    if task not in (PAINT, *PAINTED):
        raise InputError(f"the task {task!r} paints nothing; give one of {', '.join((PAINT, *PAINTED))}, or ask a Chat")
    if (task == PAINT and images) or (task != PAINT and size):
        raise InputError(
            f"the task {task!r} takes {'no images' if images else 'the size of its image'}; leave them out"
        )
    with loaded.on_mesh():
        cfg = settings_for(settings, loaded.settings)(task)
        make, width_height = loaded.prompts, pixel_size(size) if isinstance(size, str) else size
        seen = [as_shown(image) for image in images]
        asked = [
            make.generate(text, width_height, cfg) if task == PAINT else make.task(task, text, seen, cfg)
            for text in texts
        ]
        for prompt in asked:
            _check_room(prompt)
        return _pictures(loaded, Job(tuple(asked), index(seed), per_prompt, rows))


def _check_room(prompt: Prompt) -> None:
    """Raises InputError where the settings cut the picture."""
    if prompt.picture > prompt.cfg.max_new_tokens:
        raise InputError(
            f"max_new_tokens={prompt.cfg.max_new_tokens:,}, but the picture of {prompt.text!r} takes {prompt.picture:,} tokens; "
            "raise it, or make the picture smaller"
        )


def _pictures(loaded: LoadedModel, job: Job) -> list[Image.Image]:
    """The first picture of each answer, in the order of the prompts."""
    found: dict[tuple[int, int], Image.Image] = {}
    for drawn in draw(loaded.model, loaded.image_tokenizer, loaded.vocab, job, job.items):
        if not drawn.images:
            why = "; ".join(drawn.broken) or "it holds words alone"
            raise InputError(
                f"answer {drawn.item[1]} to prompt {drawn.item[0]} has no picture: {why}; give another seed"
            )
        found[drawn.item] = drawn.images[0]
    return [found[item] for item in job.items]
