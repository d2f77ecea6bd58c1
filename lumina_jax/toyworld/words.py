"""The words of the embedded world's prompts, captions and answers."""

from lumina_jax.toyworld.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES

WORDS = (
    *("a", "the", "in", "at", "on", "of", "and", "to", "background", "image"),
    *("top", "bottom", "left", "right", "middle"),
    *("Semantic", "segmentation", "Depth", "Surface", "normal", "pose", "estimation", "Detect", "Describe", "Edit"),
    *("Add", "Remove", "Move", "Recolour", "How", "many", "What", "colour", "is", "are", "there", "Yes", "No"),
)
"""Words of captions, requests, questions and answers besides those that the scenes' attributes have."""


def world_words() -> list[str]:
    """All words as tokens: capitalised ones, which begin a sentence, as they are; all others with a leading space."""
    phrases = (*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *RELATIONS, *WORDS)
    return [word if word[0].isupper() else f" {word}" for phrase in phrases for word in phrase.split()]
