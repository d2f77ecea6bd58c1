"""How far a prediction is from the truth, in the measures of each field. Arrays in, numbers out."""

import numpy as np

from lumina_jax.pictures.annotations import Box

MAX_PSNR_DB = 100.0
"""PSNR is capped here, so that equal pictures have a finite one."""
LUMA = np.array([0.299, 0.587, 0.114])


def psnr(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures u8[Y X 3], at most MAX_PSNR_DB."""
    return psnr_of_error(float(np.mean(np.square(truth.astype(np.float64) - predicted))))


def psnr_of_error(error: float) -> float:
    """PSNR in dB of a mean squared error between levels 0 to 255, at most MAX_PSNR_DB."""
    return min(MAX_PSNR_DB, float(10 * np.log10(255**2 / error))) if error else MAX_PSNR_DB


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix i64[n n] of class numbers i[Y X]: rows are true, columns predicted classes. Matrices may be summed."""
    pairs = classes * truth.ravel().astype(np.int64) + predicted.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_iou(counts: np.ndarray) -> float:
    """Mean intersection over union of a confusion matrix i64[n n], over the classes that occur in truth or prediction."""
    common = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - common
    return float(np.mean(common[union > 0] / union[union > 0]))


def pixel_accuracy(counts: np.ndarray) -> float:
    """The share of pixels with the right class, of a confusion matrix i64[n n]."""
    return float(np.trace(counts) / counts.sum())


def abs_rel(truth: np.ndarray, predicted: np.ndarray) -> float:
    """AbsRel, the mean relative error of depths: |predicted - truth| / truth."""
    return float(np.mean(np.abs(predicted - truth) / truth))


def delta(truth: np.ndarray, predicted: np.ndarray, threshold: float = 1.25) -> float:
    """The share of depths whose ratio to the truth, or its inverse, is below ``threshold``."""
    return float(np.mean(np.maximum(predicted / truth, truth / predicted) < threshold))


def angular_error(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean angle in degrees between unit vectors f[... 3], where the truth is not zero; a zero prediction counts as 90."""
    valid = np.linalg.norm(truth, axis=-1) > 0
    if not valid.any():
        return 0.0
    truth, predicted = truth[valid], predicted[valid]
    # arctan2 of sine and cosine: arccos is inexact near 0, where it matters most.
    angles = np.arctan2(np.linalg.norm(np.cross(truth, predicted), axis=-1), np.sum(truth * predicted, axis=-1))
    return float(np.degrees(np.mean(np.where(np.linalg.norm(predicted, axis=-1) > 0, angles, np.pi / 2))))


def correct_keypoints(truth: np.ndarray, tolerance: np.ndarray, predicted: np.ndarray) -> int:
    """How many points f[n 2] have a predicted point of f[m 2] within ``tolerance`` f[n].

    Points are matched greedily, nearest first, and each predicted one at most once.
    """
    distances = np.linalg.norm(truth[:, None] - predicted[None], axis=-1) / tolerance[:, None]
    matches = 0
    while distances.size and distances.min() <= 1:
        row, column = np.unravel_index(int(distances.argmin()), distances.shape)
        distances = np.delete(np.delete(distances, row, axis=0), column, axis=1)
        matches += 1
    return matches


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(right - left) * (lower - upper) for left, upper, right, lower in (first, second)]
    return common / (sum(areas) - common)


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures u8[Y X 3], 1 when equal: of luma, Gaussian windows of 1.5 px."""
    from scipy import ndimage  # takes a third of a second, which sampling does not wait for

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5)

    x, y = (np.asarray(picture, np.float64) @ LUMA for picture in (first, second))
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))
