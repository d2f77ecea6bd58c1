"""Depth, normals, classes, boxes and joints drawn into pictures are read back; and the metrics of known cases."""

import numpy as np
import pytest

from lumina_jax.pictures import annotations, dense_maps, metrics

RNG = np.random.default_rng(0)
BONES = ((0, 1), (1, 2), (1, 3))


@pytest.mark.smoke
@pytest.mark.parametrize(("near", "far"), [(0.5, 80.0), (1.0, 8.0), (0.1, 655.35)])
def test_depth_comes_back_within_half_a_level(near, far):
    metres = np.exp(RNG.uniform(np.log(near), np.log(far), (40, 50)))
    picture = dense_maps.encode_depth(metres, near, far)
    assert picture.dtype == np.uint8 and picture.shape == (40, 50, 3)
    decoded = dense_maps.decode_depth(picture, near, far)
    assert (np.abs(decoded - metres) / metres).max() <= dense_maps.depth_error(near, far) * 1.001
    np.testing.assert_array_equal(dense_maps.encode_depth(decoded, near, far), picture)


def test_depth_is_clipped_and_missing_depth_is_far():
    metres = np.array([[0.2, 100.0, np.nan, np.inf, 0.0, -1.0]])
    np.testing.assert_array_equal(dense_maps.encode_depth(metres, 1, 10)[0, :, 0], [255, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="from 5 to 2 m"):
        dense_maps.encode_depth(metres, 5, 2)


@pytest.mark.smoke
def test_normals_come_back_within_0_4_degrees_and_missing_ones_as_zero():
    normals = RNG.normal(size=(60, 70, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[:5] = 0
    decoded = dense_maps.decode_normals(dense_maps.encode_normals(normals))
    assert (decoded[:5] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(decoded[5:], axis=-1), 1, atol=1e-5)
    cosines = np.clip((decoded[5:] * normals[5:]).sum(axis=-1), -1, 1)
    assert np.degrees(np.arccos(cosines)).max() < 0.4


@pytest.mark.smoke
def test_classes_come_back_also_through_noise():
    colours = dense_maps.palette(21)
    classes = RNG.integers(21, size=(30, 40))
    picture = dense_maps.encode_classes(classes, colours)
    np.testing.assert_array_equal(dense_maps.decode_classes(picture, colours), classes)
    noisy = np.clip(picture + RNG.integers(-20, 21, picture.shape), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(dense_maps.decode_classes(noisy, colours), classes)
    with pytest.raises(ValueError, match="to 30, but colours for 0 to 20"):
        dense_maps.encode_classes(np.array([[30]]), colours)


def test_the_palette_is_pascal_voc_s_and_has_no_colour_twice():
    assert dense_maps.palette(22)[[1, 15, 20, 21]].tolist() == [
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [128, 64, 128],
    ]
    assert len(np.unique(dense_maps.palette(256), axis=0)) == 256
    with pytest.raises(ValueError, match="257"):
        dense_maps.palette(257)


def test_a_drawn_box_is_read_back():
    photo = RNG.integers(0, 200, (60, 80, 3)).astype(np.uint8)
    before = photo.copy()
    for box in ((10, 5, 50, 40), (0, 0, 80, 60), (70, 50, 80, 60)):
        drawn = annotations.draw_box(photo, box, 2)
        assert annotations.read_box(drawn) == box
        changed = (drawn != photo).any(axis=-1)
        left, upper, right, lower = box
        assert not changed[upper + 2 : lower - 2, left + 2 : right - 2].any()
    assert annotations.read_box(annotations.draw_box(photo, (-9, 20, 30, 99), 2)) == (0, 20, 30, 60)
    assert (photo == before).all()
    assert annotations.read_box(np.zeros((8, 8, 3), np.uint8)) is None
    with pytest.raises(ValueError, match="no pixel"):
        annotations.draw_box(photo, (90, 5, 95, 9), 2)


@pytest.mark.parametrize("joints", [4, 17])
def test_drawn_joints_are_read_back(joints):
    people = [RNG.permutation(joints)[:, None] * (8.0, 5.0) + (15.3, 12.7 + 110 * number) for number in range(2)]
    people[1][2] = np.nan
    picture = annotations.draw_skeletons((180, 230), people, BONES, [3.0, 3.0], [1.2, 1.2])
    dots_by_joint = annotations.read_joints(picture, joints)
    for joint, dots in enumerate(dots_by_joint):
        truth = np.array([person[joint] for person in people if np.isfinite(person[joint]).all()])
        assert metrics.correct_keypoints(truth, np.full(len(truth), 1.0), dots) == len(truth) == len(dots)


def test_metrics_of_known_cases():
    truth, predicted = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    counts = metrics.confusion(truth, predicted, 3)
    assert counts.sum() == 4 and counts[0, 1] == 1
    assert metrics.mean_iou(counts) == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 occurs nowhere
    assert metrics.pixel_accuracy(counts) == 0.75
    metres, estimate = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 4.4])
    assert metrics.abs_rel(metres, estimate) == pytest.approx(0.2)
    assert metrics.delta(metres, estimate) == pytest.approx(2 / 3)
    up, aside, none = np.array([0, 1.0, 0]), np.array([1.0, 0, 0]), np.zeros(3)
    assert metrics.angular_error(np.stack([up, up]), np.stack([up, aside])) == pytest.approx(45)
    assert metrics.angular_error(np.stack([up, none]), np.stack([none, up])) == pytest.approx(90)
    assert metrics.box_iou((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert metrics.box_iou((0, 0, 4, 4), (4, 4, 6, 6)) == 0


def test_a_predicted_point_matches_one_true_point_only():
    truth = np.array([[0.0, 0.0], [1.0, 0.0]])
    tolerance = np.array([2.0, 2.0])
    assert metrics.correct_keypoints(truth, tolerance, np.array([[0.5, 0.0]])) == 1
    assert metrics.correct_keypoints(truth, tolerance, np.array([[0.5, 0.0], [1.5, 0.0], [9.0, 9.0]])) == 2
    assert metrics.correct_keypoints(truth, tolerance, np.zeros((0, 2))) == 0
