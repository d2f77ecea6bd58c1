"""Laws of the embedded world's scenes."""

from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.layout import crop_sizes
from lumina_jax.toyworld.scenes import (
    BACKGROUNDS,
    COLOURS,
    FULL,
    GAP,
    INVERSE,
    MINI,
    REGIONS,
    SHAPES,
    Object,
    Scene,
    World,
    mask,
    radii,
    region,
    relation,
)
from lumina_jax.toyworld.source import stage_sizes

ALL_SIZES = sorted({size for target in (64, 96, 128) for size in crop_sizes(target)})


@pytest.mark.smoke
def test_a_scene_is_a_pure_function_of_its_arguments():
    scenes = [MINI.scene((96, 64), 3, index) for index in range(50)]
    assert [MINI.scene((96, 64), 3, index) for index in range(50)] == scenes
    assert len(set(scenes)) > 45
    assert [MINI.scene((96, 64), 4, index) for index in range(50)] != scenes
    np.testing.assert_array_equal(scenes[0].render(), MINI.scene((96, 64), 3, 0).render())


@pytest.mark.parametrize("canvas", ALL_SIZES)
def test_objects_lie_inside_apart_and_unambiguous(canvas):
    for index in range(1000):
        scene = FULL.scene(canvas, 0, index)
        assert scene.canvas == canvas
        for thing in scene.objects:
            rows, columns = thing.box(canvas)
            assert min(rows.start, columns.start) >= 0
            assert columns.stop <= canvas[0] and rows.stop <= canvas[1]
            assert thing.x % FULL.snap == thing.y % FULL.snap == 0
        if len(scene.objects) == 2:
            first, second = scene.objects
            dx, dy = abs(first.x - second.x), abs(first.y - second.y)
            reach = sum(radii(canvas)[thing.size] for thing in scene.objects)
            assert max(dx, dy) - reach >= GAP and abs(dx - dy) >= 8
            assert relation(second, first) == INVERSE[relation(first, second)]


@pytest.mark.parametrize("canvas", ALL_SIZES)
def test_both_kinds_of_scene_come_at_about_their_shares(canvas):
    singles = sum(len(MINI.scene(canvas, 1, index).objects) == 1 for index in range(500))
    assert abs(singles / 500 - MINI.single_share) < 0.1
    assert all(len(replace(MINI, single_share=1.0).scene(canvas, 1, index).objects) == 1 for index in range(20))


def test_every_kind_of_object_relation_region_and_background_comes_up():
    scenes = [FULL.scene((128, 96), 0, index) for index in range(4000)]
    things = {(thing.shape, thing.colour, thing.size) for scene in scenes for thing in scene.objects}
    assert len(things) == len(SHAPES) * len(COLOURS) * 2
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {relation(*scene.objects) for scene in scenes if len(scene.objects) == 2} == set(INVERSE)
    regions = {region(scene.objects[0], scene.canvas) for scene in scenes if len(scene.objects) == 1}
    assert regions == {word for row in REGIONS for word in row}


@pytest.mark.smoke
@pytest.mark.parametrize("canvas", [(64, 64), (128, 32), (64, 192), (128, 128)])
def test_training_scenes_never_show_a_held_out_triple_and_held_out_scenes_always_do(canvas):
    def triple(subject, other):
        return (subject.colour, subject.shape, relation(subject, other))

    for index in range(2000):
        scene = MINI.scene(canvas, 0, index)
        if len(scene.objects) == 2:
            first, second = scene.objects
            assert not {triple(first, second), triple(second, first)} & set(MINI.held_out)
    for index in range(200):
        assert triple(*MINI.scene(canvas, 0, index, held_out=True).objects) in MINI.held_out


def test_the_picture_shows_each_object_in_its_box_and_nothing_outside():
    for index in range(200):
        scene = FULL.scene((96, 128), 0, index)
        image = scene.render()
        assert image.shape == (128, 96, 3) and image.dtype == np.uint8
        for thing in scene.objects:
            inside = mask(thing.shape, radii(scene.canvas)[thing.size])
            box = image[thing.box(scene.canvas)]
            assert (box[inside] == COLOURS[thing.colour]).all() and (
                box[~inside] == BACKGROUNDS[scene.background]
            ).all()
            image[thing.box(scene.canvas)] = BACKGROUNDS[scene.background]
        assert (image == BACKGROUNDS[scene.background]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [8, 16, 24])
def test_a_shape_is_symmetric_and_touches_its_box(shape, radius):
    inside = mask(shape, radius)
    assert (inside == inside[:, ::-1]).all()
    assert inside.any(0).all() and inside.any(1).all()


def test_a_patch_shows_at_most_one_object_and_distinct_patches_are_few():
    patches = set()
    for target in (64, 96, 128):
        for canvas in stage_sizes(target):
            for index in range(300):
                patches |= set(_patches(MINI.scene(canvas, 0, index)))
    assert 300 < len(patches) <= 400
    for index in range(1000):
        scene = MINI.scene((128, 128), 0, index)
        single = [_patches(replace(scene, objects=(thing,))) for thing in scene.objects]
        assert all(patch in alone for patch, *alone in zip(_patches(scene), *single, strict=True))


def _patches(scene: Scene) -> list[bytes]:
    blocks = scene.render().reshape(scene.height // 16, 16, scene.width // 16, 16, 3).swapaxes(1, 2)
    return [patch.tobytes() for patch in blocks.reshape(-1, 16 * 16 * 3)]


def test_relations_and_regions_of_known_positions():
    a, b = Object("circle", "red", "small", 16, 40), Object("square", "blue", "small", 48, 32)
    assert relation(a, b) == "left of" and relation(b, a) == "right of"
    assert relation(replace(a, x=48, y=8), b) == "above" and relation(replace(a, x=40, y=56), b) == "below"
    assert region(a, (64, 64)) == "bottom left" and region(replace(b, x=32), (64, 64)) == "middle"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(colours=("red", "pink")), "pink"),
        (dict(shapes=()), "at least one"),
        (dict(single_share=1.5), "1.5"),
        (dict(snap=32), "1 to 16"),
        (dict(held_out=(("purple", "circle", "above"),)), "purple"),
        (dict(shapes=("circle",), colours=("red",), held_out=(("red", "circle", "above"),)), "leave one"),
    ],
)
def test_an_impossible_world_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        World(**wrong)


def test_a_canvas_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 32"):
        MINI.scene((64, 16), 0, 0)
    with pytest.raises(ValueError, match="no room"):
        MINI.scene((32, 32), 0, 0, held_out=True)
