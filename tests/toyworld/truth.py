"""What a perfect model answers."""

from lumina_jax.toyworld.exercises import Exercise, Reply, true_turns


def true_replies(exercise: Exercise) -> list[Reply]:
    """The true answer of each turn."""
    return [turn.answer for turn in true_turns(exercise)]
