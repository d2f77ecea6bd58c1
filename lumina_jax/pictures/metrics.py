"""How far a prediction is from the truth, in the measures of each field. Arrays in, numbers out."""

import numpy as np
from scipy import ndimage

from lumina_jax.pictures.annotations import Box

BEST_PSNR = 100.0
"""What equal pictures count as, in dB."""

LUMA = np.array([0.299, 0.587, 0.114])


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each true class were found to be of each class: i64[n n] from class numbers i[Y X]; it adds up."""
    pairs = classes * truth.ravel().astype(np.int64) + found.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_iou(counts: np.ndarray) -> float:
    """Intersection over union of i64[n n], averaged over the classes that occur in truth or prediction."""
    common = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - common
    return float(np.mean(common[union > 0] / union[union > 0]))


def pixel_accuracy(counts: np.ndarray) -> float:
    """The share of pixels of i64[n n] whose class is right."""
    return float(np.trace(counts) / counts.sum())


def abs_rel(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean relative error of depths: |found - truth| / truth."""
    return float(np.mean(np.abs(found - truth) / truth))


def delta(truth: np.ndarray, found: np.ndarray, threshold: float = 1.25) -> float:
    """The share of depths off by a factor below ``threshold``."""
    return float(np.mean(np.maximum(found / truth, truth / found) < threshold))


def angular_error(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean angle in degrees between unit vectors f[... 3], where there is a truth; a missing one found counts as 90."""
    read = np.linalg.norm(truth, axis=-1) > 0
    if not read.any():
        return 0.0
    truth, found = truth[read], found[read]
    # The angle by its sine and cosine: arccos is inexact where it matters most, near 0.
    angles = np.arctan2(np.linalg.norm(np.cross(truth, found), axis=-1), np.sum(truth * found, axis=-1))
    return float(np.degrees(np.mean(np.where(np.linalg.norm(found, axis=-1) > 0, angles, np.pi / 2))))


def correct_keypoints(truth: np.ndarray, reach: np.ndarray, found: np.ndarray) -> int:
    """How many points f[n 2] have a point of f[m 2] within ``reach`` f[n], each found one counting once, the nearest first."""
    distances = np.linalg.norm(truth[:, None] - found[None], axis=-1) / reach[:, None]
    right = 0
    while distances.size and distances.min() <= 1:
        row, column = np.unravel_index(int(distances.argmin()), distances.shape)
        distances = np.delete(np.delete(distances, row, axis=0), column, axis=1)
        right += 1
    return right


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(right - left) * (lower - upper) for left, upper, right, lower in (first, second)]
    return common / (sum(areas) - common)


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two pictures u8[Y X 3], 1 when equal (Wang et al. 2004): of luma, in Gaussian windows of 1.5 px."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5)

    x, y = (np.asarray(picture, np.float64) @ LUMA for picture in (first, second))
    mean_x, mean_y = smooth(x), smooth(y)
    spread_x, spread_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    common = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * common + c2)
    return float(np.mean(above / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2))))


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two u8 pictures of one shape, at most BEST_PSNR."""
    return psnr_of(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))


def psnr_of(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of u8 pictures with this mean squared error, at most BEST_PSNR."""
    return float(10 * np.log10(255**2 / max(mean_squared_error, 255**2 / 10 ** (BEST_PSNR / 10))))
