"""PatchVQ: exact where a dictionary suffices, nearest patches elsewhere, behind the interface of VQVAE."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures.pixels import to_image, to_pixels


def tiles(count: int, stride: int, seed: int = 0) -> np.ndarray:
    """``count`` distinct patches u8[count stride stride 3]."""
    patches = np.random.default_rng(seed).integers(256, size=(count, stride, stride, 3), dtype=np.uint8)
    patches[:, 0, 0, 0], patches[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return patches


def tiled(patches: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Patches u8[E S S 3] laid out as i64[R C] says -> u8[Y X 3]."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in patches[codes]], axis=0)


def world(count: int, patches: np.ndarray, rows: int, columns: int, seed: int = 1) -> list[np.ndarray]:
    """Pictures of patches that occur with very different frequency."""
    codes = np.random.default_rng(seed).zipf(1.5, (count, rows, columns)) % len(patches)
    return [tiled(patches, grid) for grid in codes]


def smooth(count: int, size: int, seed: int = 2) -> list[np.ndarray]:
    """Smooth pictures in which hardly a patch occurs twice."""
    small = np.random.default_rng(seed).integers(256, size=(count, 5, 5, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in small]


def stack(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([to_pixels(Image.fromarray(picture)) for picture in pictures])


@pytest.mark.smoke
@pytest.mark.parametrize("stride", [1, 2, 3, 8, 16])
def test_a_dictionary_is_lossless(stride):
    pictures = world(20, tiles(60, stride), rows=4, columns=6) + world(20, tiles(60, stride), rows=3, columns=2)
    vq = PatchVQ.fit(iter(pictures), codes=60, stride=stride)
    assert vq.codes <= 60
    assert vq.stride == stride
    for shape in {picture.shape for picture in pictures}:
        same = [picture for picture in pictures if picture.shape == shape]
        codes = vq.encode(stack(same))
        assert (codes.dtype, codes.shape[1:]) == (np.int32, (shape[0] // stride, shape[1] // stride))
        decoded = vq.decode(codes)
        assert decoded.dtype == np.float32
        assert np.abs(decoded).max() <= 1
        for pixels, picture in zip(decoded, same, strict=True):
            np.testing.assert_array_equal(np.asarray(to_image(pixels)), picture)


@pytest.mark.smoke
def test_every_byte_survives():
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    vq = PatchVQ.fit([picture], codes=256, stride=1)
    assert vq.codes == 256
    pixels = to_pixels(Image.fromarray(picture))
    again = vq.decode(vq.encode(pixels[None]))[0]
    np.testing.assert_array_equal(np.asarray(to_image(again)), picture)
    np.testing.assert_array_equal(vq.encode(again[None]), vq.encode(pixels[None]))
    np.testing.assert_allclose(again, pixels, rtol=0, atol=1e-5)


def test_codes_of_distinct_patches_survive_decode_and_encode():
    vq = PatchVQ(tiles(300, 4))
    codes = np.random.default_rng(3).integers(300, size=(2, 5, 7)).astype(np.int32)
    np.testing.assert_array_equal(vq.encode(vq.decode(codes)), codes)


def test_codes_are_ordered_by_frequency():
    patches = tiles(3, 4)
    grid = np.array([[0, 1, 1], [2, 1, 2], [1, 2, 1]])
    vq = PatchVQ.fit([tiled(patches, grid)], codes=8, stride=4)
    np.testing.assert_array_equal(vq.codebook, patches[[1, 2, 0]])


def test_encode_is_the_nearest_patch():
    vq = PatchVQ(tiles(40, 4))
    pictures = [*smooth(2, 16), tiled(vq.codebook, np.arange(16).reshape(4, 4))]
    codes = vq.encode(stack(pictures))
    for picture, grid in zip(pictures, codes, strict=True):
        for row, column in itertools.product(range(4), range(4)):
            patch = picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].astype(np.int64)
            distances = np.square(vq.codebook.astype(np.int64) - patch).sum((1, 2, 3))
            assert grid[row, column] == distances.argmin()


def test_equal_patches_give_the_first():
    patches = tiles(5, 4)
    vq = PatchVQ(np.concatenate([patches, patches]))
    np.testing.assert_array_equal(vq.encode(vq.decode(np.array([[[7, 2, 9]]]))), [[[2, 2, 4]]])


def test_more_codes_lose_less():
    pictures = smooth(12, 64)
    reports = [PatchVQ.fit(pictures, codes, stride=8).report(pictures) for codes in (4, 32, 256)]
    psnr = [report["psnr_db"] for report in reports]
    assert psnr[0] + 1 < psnr[1]
    assert psnr[1] + 1 < psnr[2]
    assert PatchVQ.fit(pictures, 4, stride=8).codes == 4


def test_kmeans_beats_the_most_frequent_patches():
    pictures = smooth(12, 64)
    fitted = PatchVQ.fit(pictures, 24, stride=8)
    every = PatchVQ.fit(pictures, 10_000, stride=8)
    assert fitted.report(pictures)["psnr_db"] > PatchVQ(every.codebook[:24]).report(pictures)["psnr_db"] + 1


def test_fit_is_a_function_of_pictures_and_seed():
    pictures = smooth(6, 64)
    first, second = (PatchVQ.fit(pictures, 16, stride=8, seed=5).codebook for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, PatchVQ.fit(pictures, 16, stride=8, seed=6).codebook)


def test_frequent_patches_survive_a_flood_of_rare_ones():
    """More distinct patches than the fit remembers: what it forgets is rare."""
    flood = np.random.default_rng(4).integers(256, size=(30, 128, 128, 3), dtype=np.uint8)
    flood[:, :64, :64] = tiled(tiles(1, 4, seed=9), np.zeros((16, 16), np.int64))
    vq = PatchVQ.fit(flood, 16, stride=4)
    exact = (vq.codebook == tiles(1, 4, seed=9)).all((1, 2, 3))
    assert exact[0]


def test_report_is_json_and_counts_codes():
    patches = tiles(4, 4)
    vq = PatchVQ(patches)
    exact = tiled(patches, np.array([[0, 1], [0, 1]]))
    report = vq.report([exact, exact ^ 1])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["pictures"] == 2
    assert report["exact"] == 0.5
    assert report["codes_used"] == 0.5
    assert report["perplexity"] == pytest.approx(2)
    # One level off everywhere is a mean square error of 1.
    assert report["psnr_db"] == pytest.approx((100 + 20 * np.log10(255)) / 2)


def test_saved_is_loaded(tmp_path):
    vq = PatchVQ(tiles(20, 8))
    vq.save(tmp_path / "codes.npz")
    np.testing.assert_array_equal(PatchVQ.load(tmp_path / "codes.npz").codebook, vq.codebook)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", codebook=tiles(2, 4))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=rf"{name} is no PatchVQ codebook"):
            PatchVQ.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        PatchVQ.load(tmp_path / "absent.npz")


def test_wrong_input_is_named():
    vq = PatchVQ(tiles(4, 8))
    with pytest.raises(ValueError, match=r"24x20 pixels.*stride 8"):
        vq.encode(np.zeros((1, 20, 24, 3), np.float32))
    with pytest.raises(ValueError, match=r"24x20 pixels.*stride 8"):
        PatchVQ.fit([np.zeros((20, 24, 3), np.uint8)], 4, stride=8)
    with pytest.raises(ValueError, match="uint8"):
        vq.encode(np.zeros((1, 16, 24, 3), np.uint8))
    with pytest.raises(ValueError, match="no pictures"):
        PatchVQ.fit([], 4)
    with pytest.raises(ValueError, match=r"float32.*expected uint8"):
        PatchVQ.fit([np.zeros((16, 16, 3), np.float32)], 4)
    with pytest.raises(ValueError, match="codes=0"):
        PatchVQ.fit([np.zeros((16, 16, 3), np.uint8)], 0)
    with pytest.raises(ValueError, match="0 to 3"):
        vq.decode(np.array([[[0, 4]]]))
