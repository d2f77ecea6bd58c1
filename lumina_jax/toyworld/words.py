"""The words of the embedded world's prompts, captions and answers."""

from lumina_jax.toyworld.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES

WORDS = (
    *("a", "the", "in", "at", "on", "of", "and", "to", "background", "image"),
    *("top", "bottom", "left", "right", "middle"),
    *("Semantic", "segmentation", "Depth", "Surface", "normal", "pose", "estimation", "Detect", "Describe", "Edit"),
    *("Add", "Remove", "Move", "Recolour", "How", "many", "What", "colour", "is", "are", "there", "Yes", "No"),
)
"""Words besides the scenes' own: those of captions, and of tasks, questions and answers about scenes."""


def world_words() -> list[str]:
    """Every word as prompts have it: the first of a sentence bare, any other behind its space."""
    phrases = (*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *RELATIONS, *WORDS)
    return [word if word[0].isupper() else f" {word}" for phrase in phrases for word in phrase.split()]
