"""Laws of captions: they are true of their scenes, and parsing returns their claims."""

from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.toyworld.captions import Background, Count, Region, Relation, Thing, facts_true, parse, random_caption
from lumina_jax.toyworld.scenes import FULL, MINI, Object, Scene
from lumina_jax.toyworld.source import captioned_scene, stage_sizes

PAIR = Scene(64, 64, "white", (Object("circle", "red", "small", 16, 32), Object("square", "blue", "small", 48, 32)))


@pytest.mark.smoke
@pytest.mark.parametrize("held_out", [False, True])
def test_a_caption_is_true_of_its_scene_and_parses_to_itself(held_out):
    for index in range(3000):
        scene, caption = captioned_scene(FULL, stage_sizes(64) + stage_sizes(128), 0, index, held_out)
        assert parse(caption.text) == caption
        assert facts_true(scene, caption.claims)


def test_optional_facts_are_mentioned_with_their_probabilities():
    drawn = [captioned_scene(MINI, [(64, 64)], 0, index) for index in range(4000)]
    things = [claim for _, caption in drawn for claim in caption.claims if isinstance(claim, Thing)]
    assert abs(np.mean([thing.size is not None for thing in things]) - 0.5) < 0.03
    assert abs(np.mean([any(isinstance(c, Background) for c in caption.claims) for _, caption in drawn]) - 0.6) < 0.03
    singles = [caption for scene, caption in drawn if len(scene.objects) == 1]
    assert abs(np.mean([any(isinstance(c, Region) for c in caption.claims) for caption in singles]) - 0.6) < 0.06


def test_a_held_out_caption_states_a_held_out_triple():
    for index in range(500):
        _, caption = captioned_scene(MINI, stage_sizes(64), 0, index, held_out=True)
        subject, relation, *_ = caption.claims
        assert (subject.colour, subject.shape, relation.word) in MINI.held_out


def test_prompts_of_users_are_parsed():
    pair = (Thing("red", "circle"), Relation("left of"), Thing("blue", "square"))
    assert parse("a red circle left of a blue square").claims == (*pair, Count(2))
    white = (*pair, Background("white"), Count(2))
    assert parse("a red circle left of a blue square on white").claims == white
    assert parse("A red circle left of a blue square on a white background.").claims == white
    single = parse("a small green triangle in the top left").claims
    assert single == (Thing("green", "triangle", "small"), Region("top left"), Count(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'a'.*not the end"),
        ("a pink circle", "'red'.*not 'pink'"),
        ("a red dog", "'circle'.*not 'dog'"),
        ("a red circle near a blue square", "'left of'.*not 'near'"),
        ("a red circle above", "'a'.*not the end"),
        ("a red circle on white and more", "not 'and'"),
    ],
)
def test_an_unknown_word_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("scene", "text", "true"),
    [
        (PAIR, "a red circle left of a blue square", True),
        (PAIR, "a blue square right of a small red circle on white", True),
        (PAIR, "a red circle above a blue square", False),
        (PAIR, "a red circle left of a large blue square", False),
        (PAIR, "a red circle left of a blue square on black", False),
        (PAIR, "a red circle left of a red circle", False),
        (PAIR, "a red circle", False),
        (replace(PAIR, objects=PAIR.objects[:1]), "a red circle at the left", True),
        (replace(PAIR, objects=PAIR.objects[:1]), "a red circle left of a blue square", False),
    ],
)
def test_facts_are_checked_on_the_scene(scene, text, true):
    assert facts_true(scene, parse(text).claims) == true


def test_the_caption_draws_from_its_generator_alone():
    assert random_caption(PAIR, np.random.default_rng(7)) == random_caption(PAIR, np.random.default_rng(7))
