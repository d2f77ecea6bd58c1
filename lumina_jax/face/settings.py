"""The settings of sampling as keywords, as the command line has them as options."""

from argparse import Namespace
from collections.abc import Callable
from typing import TypedDict

from lumina_jax.cli.parser import did_you_mean
from lumina_jax.cli.settings import FIELDS, asked_settings
from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError


class SamplingSettings(TypedDict, total=False):
    """Keywords of :func:`lumina_jax.generate` and :class:`lumina_jax.Chat`; what each means is said by config.SampleConfig.

    What is left out is the task's, or the model's own, as for ``run.py sample``.
    """

    guidance: float
    temperature: float
    image_top_k: int
    text_top_k: int
    min_p: float
    max_new_tokens: int
    parallel: str
    window: int
    tree: int
    cache: str


def settings_for(changes: SamplingSettings, own: SampleConfig) -> Callable[[str], SampleConfig]:
    """A function task of conversation.TASKS -> its SampleConfig, for a model whose own settings are ``own``.

    Raises InputError for an unknown name or a wrong value.
    """
    for name in changes:
        if name not in FIELDS:
            raise InputError(f"no setting {name!r}{did_you_mean(name, FIELDS)}; the settings are {', '.join(FIELDS)}")
    settings: Callable[[str], SampleConfig] = asked_settings(Namespace(**changes), own)
    return settings
