"""2,000 generated picture files are shown as a viewer shows them or refused for the right cause, and none is wrong."""

import itertools

import numpy as np
import pytest
from picture_corpus import PAIRS, PictureCase, corpus

from lumina_jax.errors import cause_of
from lumina_jax.pictures.pixels import decode, whiten

FILES = 2000
"""All in eight seconds: 130 pairs of kind and container, 15 files each, with drawn orientation, profile and damage."""


def wrong(case: PictureCase) -> str:
    """What is wrong with the answer to a case; empty when it is right."""
    try:
        shown = np.asarray(whiten(decode(case.content, "the file"))).astype(int)
    except ValueError as error:
        expected = case.cause or "a picture"
        named = str(error).startswith("the file: ")
        return "" if cause_of(error) == case.cause and named else f"{expected} was refused: {error} ({cause_of(error)})"
    if case.shown is None:
        return f"a picture of {shown.shape}, not {case.cause}"
    return "" if near(shown, case) else f"another picture, of {shown.shape}, not {case.shown.shape}"


def near(picture: np.ndarray, case: PictureCase) -> bool:
    if picture.shape != case.shown.shape:
        return False
    differences = np.abs(picture.astype(int) - case.shown)
    return differences.mean() <= case.tolerance[0] and differences.max() <= case.tolerance[1]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks, which formats.py silences outside of pytest
def test_every_picture_file_is_shown_as_by_a_viewer_or_refused_for_its_cause():
    answers = {case.name: wrong(case) for case in corpus(FILES)}
    assert len(answers) == FILES
    assert not [f"{name}: {answer}" for name, answer in answers.items() if answer]


def test_the_corpus_tells_whoever_ignores_orientation_or_profile():
    """Otherwise its tolerances would be too wide. Black and white are the same in every gray profile."""
    cases = [case for case in corpus(3 * len(PAIRS)) if case.unread is not None]
    changed = [case for case in cases if not np.array_equal(case.unread, case.shown)]
    assert len(changed) > len(PAIRS) / 2 and not [case.name for case in changed if near(case.unread, case)]


def test_the_corpus_holds_every_kind_of_answer():
    cases = list(itertools.islice(corpus(FILES), 4 * len(PAIRS)))
    causes = {case.cause for case in cases}
    assert {"", "damaged picture", "empty file", "no picture", "picture too large", "floating-point pixels"} < causes
    assert sum(case.shown is not None for case in cases) > len(cases) / 2
