"""The Python face: a model with all it needs in one object, pictures from prompts, dialogs. ``from lumina_jax import load``."""

from lumina_jax.face.chat import Chat, Reply
from lumina_jax.face.loading import LoadedModel, load
from lumina_jax.face.painting import generate
from lumina_jax.face.settings import SamplingSettings

__all__ = ["Chat", "LoadedModel", "Reply", "SamplingSettings", "generate", "load"]
