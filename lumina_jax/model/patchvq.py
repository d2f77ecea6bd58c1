"""An image tokenizer without a network: each code stands for a patch of pixels. Fitting takes seconds.

Pictures made of few distinct patches (drawn worlds) are coded without loss by a dictionary of these; for others the codebook holds
k-means centres. It replaces Chameleon's tokenizer, with the same interface, where those weights are not available.
"""

import io
import zipfile
from collections.abc import Iterable

import numpy as np

from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.vqvae import check_pixels, check_size
from lumina_jax.pictures.metrics import psnr_of_error
from lumina_jax.places import Place, place
from lumina_jax.storage import atomic_write, storage_errors

FORMAT = "lumina_jax PatchVQ 1"
KMEANS_STEPS = 6
SAMPLE = 16384
"""The most distinct patches that :meth:`PatchVQ.fit` keeps, or four per code if that is more; and how many it adds at a time."""
BLOCK = 1 << 22
"""The most numbers in a temporary array."""


class PatchVQ:
    """Nearest-patch tokenizer over a codebook u8[E stride stride 3], the most frequent patch first."""

    on_devices = False

    def __init__(self, codebook: np.ndarray):
        if codebook.ndim != 4 or codebook.dtype != np.uint8 or codebook.shape[1:] != (codebook.shape[1],) * 2 + (3,):
            raise InputError(f"a codebook is {codebook.dtype}{list(codebook.shape)}; expected uint8[E stride stride 3]")
        self.codebook = codebook
        self._rows = codebook.reshape(len(codebook), -1)
        self._centred = _centred(self._rows)
        hashes = _hashes(self._rows, seed=0)
        self._by_hash = np.argsort(hashes, kind="stable")
        self._sorted_hashes = hashes[self._by_hash]
        # A thousandth of a level too high, so that float rounding and truncation never lose a level.
        self._values = np.minimum((codebook + np.float32(2**-10)) / np.float32(127.5) - 1, 1).astype(np.float32)

    @property
    def codes(self) -> int:
        """E, the number of codes."""
        return len(self.codebook)

    @property
    def stride(self) -> int:
        """Pixels per code, along either axis."""
        return self.codebook.shape[1]

    @classmethod
    def fit(cls, pictures: Iterable[np.ndarray], codes: int, stride: int = 16, seed: int = 0) -> "PatchVQ":
        """Learns at most ``codes`` patches from u8[Y X 3] pictures of any sizes, read once.

        The codebook is all distinct patches if there are at most ``codes``: then each of these pictures is coded without loss.
        Otherwise it is the result of k-means, started from the most frequent ones. Memory does not grow with the number of
        pictures. ``seed`` decides which of equally rare patches are dropped when there are too many. Raises InputError for no
        picture, or one whose size the stride does not divide.
        """
        if codes < 1 or stride < 1:
            raise InputError(f"codes={codes}, stride={stride}; both must be at least 1")
        patches, counts = _distinct(pictures, stride, limit=max(SAMPLE, 4 * codes), seed=seed)
        if len(patches) > codes:
            patches = _kmeans(patches, counts, codes)
        return cls(patches.reshape(-1, stride, stride, 3))

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """f32[B Y X 3] in [-1, 1] -> i32[B R C], the nearest codes (the first on ties). InputError off the stride."""
        pixels = np.asarray(pixels)
        check_pixels(pixels, self.stride)
        batch, height, width, _ = pixels.shape
        codes = np.empty((batch, height // self.stride, width // self.stride), np.int32)
        step = max(1, BLOCK // max(1, 4 * pixels[:1].size))
        for start in range(0, batch, step):
            block = codes[start : start + step]
            levels = np.asarray(pixels[start : start + step], np.float32) * 127.5 + 128
            patches = _patches(np.clip(levels, 0, 255).astype(np.uint8), self.stride)
            block[...] = self._lookup(patches).reshape(block.shape)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """i32[B R C] -> f32[B Y X 3] in [-1, 1], which ``pixels.to_image`` turns into exactly the bytes of the patches."""
        codes = np.asarray(codes)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise InputError(f"codes run from {codes.min()} to {codes.max()}; this codebook has 0 to {self.codes - 1}")
        batch, rows, columns = codes.shape
        tiles = self._values[codes].transpose(0, 1, 3, 2, 4, 5)
        return tiles.reshape(batch, rows * self.stride, columns * self.stride, 3)

    def encoder_weights(self) -> list[np.ndarray]:
        """The array that codes depend on: the codebook."""
        return [self.codebook]

    def save(self, path: str | Place) -> None:
        """Writes the codebook as .npz; the folder is made if need be."""
        with atomic_write(place(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, format=np.array(FORMAT), codebook=self.codebook)

    @classmethod
    def load(cls, path: str | Place) -> "PatchVQ":
        """Reads a file of :meth:`save`; MissingFileError where there is none, InputError for any other file."""
        stored = place(path)
        if not stored.is_file():
            raise MissingFileError(f"no codebook {path}; PatchVQ.fit(...).save or run.py pretokenize --fit writes one")
        with storage_errors(path), io.BytesIO(stored.read_bytes()) as file:
            if zipfile.is_zipfile(file):
                file.seek(0)
                arrays = np.load(file)
                if set(arrays) == {"format", "codebook"} and arrays["format"] == FORMAT:
                    return cls(arrays["codebook"])
        raise InputError(f"{path} is no PatchVQ codebook ({FORMAT!r}); PatchVQ.fit(...).save(path) writes one")

    def report(self, pictures: Iterable[np.ndarray]) -> dict[str, float]:
        """The quality of u8[Y X 3] pictures after encode and decode, as values for JSON.

        ``psnr_db`` is the mean over pictures, at most MAX_PSNR_DB each; ``exact`` the share of pictures without error;
        ``codes_used`` the share of codes that occur; ``perplexity`` exp of the entropy of their frequencies.
        """
        errors, counts = [], np.zeros(self.codes, np.int64)
        for picture in _checked(pictures, self.stride):
            patches = _patches(picture[None], self.stride)
            codes = self._lookup(patches)
            counts += np.bincount(codes, minlength=self.codes)
            errors.append(np.square(patches.astype(np.float32) - self._rows[codes]).mean(dtype=np.float64))
        shares = counts[counts > 0] / counts.sum()
        return {
            "pictures": len(errors),
            "psnr_db": float(np.mean([*map(psnr_of_error, errors)])),
            "exact": float(np.mean(np.array(errors) == 0)),
            "codes_used": float(np.mean(counts > 0)),
            "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        }

    def _lookup(self, patches: np.ndarray) -> np.ndarray:
        """u8[n D] -> the nearest codes i64[n]: by hash for patches of the codebook, by distance for others."""
        ranks = np.searchsorted(self._sorted_hashes, _hashes(patches, seed=0))
        codes = self._by_hash[np.minimum(ranks, self.codes - 1)]
        misses = np.flatnonzero((self._rows[codes] != patches).any(axis=1))
        if len(misses):
            codes[misses], _ = _nearest(_centred(patches[misses]), self._centred)
        return codes


def _patches(pictures: np.ndarray, stride: int) -> np.ndarray:
    """u8[B Y X 3] -> u8[B*R*C stride*stride*3]."""
    batch, height, width, _ = pictures.shape
    tiles = pictures.reshape(batch, height // stride, stride, width // stride, stride, 3)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, stride * stride * 3)


def _centred(patches: np.ndarray) -> np.ndarray:
    """u8 -> f32 in [-128, 127]: float32 products of smaller numbers are more precise."""
    return patches.astype(np.float32) - 128


def _hashes(patches: np.ndarray, seed: int) -> np.ndarray:
    """A 64-bit hash u64[n] of each row of u8[n D]: a random projection of its mixed 8-byte words."""
    words = np.pad(patches, ((0, 0), (0, -patches.shape[1] % 8))).view(np.uint64)
    first, second = np.random.default_rng(seed).integers(1 << 63, size=(2, words.shape[1]), dtype=np.uint64) * 2 + 1
    # Without this mixing, high bytes of a word reach only high bits of the sum, where they often cancel.
    words = words * first
    words ^= words >> np.uint64(32)
    words *= second
    return words.sum(axis=1)


def _checked(pictures: Iterable[np.ndarray], stride: int) -> Iterable[np.ndarray]:
    """The pictures. Raises InputError unless each is u8[Y X 3] with Y and X multiples of the stride, and there is at least one."""
    picture = None
    for picture in pictures:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"a picture is {picture.dtype}{list(picture.shape)}; expected uint8[Y X 3]")
        check_size(picture.shape[:2], stride)
        yield picture
    if picture is None:
        raise InputError("there are no pictures; give at least one")


def _distinct(pictures: Iterable[np.ndarray], stride: int, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct patches u8[n D] and their counts f64[n], most frequent first.

    Whenever there are more than ``limit``, the rarest are dropped; of equally rare ones those with the largest hashes.
    """
    patches, counts = np.empty((0, stride * stride * 3), np.uint8), np.empty(0)
    pending, length = [patches], 0
    for picture in _checked(pictures, stride):
        pending.append(_patches(picture[None], stride))
        length += len(pending[-1])
        if length >= SAMPLE:
            patches, counts = _merge(np.concatenate(pending), counts, limit, seed)
            pending, length = [patches], 0
    return _merge(np.concatenate(pending), counts, limit, seed)


def _merge(patches: np.ndarray, counts: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Merges equal patches and adds their counts: ``counts`` f64[m] of the first m patches, 1 of each later one."""
    counts = np.concatenate([counts, np.ones(len(patches) - len(counts))])
    hashes, first, group = np.unique(_hashes(patches, seed), return_index=True, return_inverse=True)
    counts = np.bincount(group, counts)
    keep = np.lexsort((hashes, -counts))[:limit]
    return patches[first[keep]], counts[keep]


def _nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of rows f32[n D]: the index i64[n] of the nearest of centres f32[E D] (the first on ties), and its squared distance
    f32[n]."""
    half_norms = np.square(centres).sum(axis=1) / 2
    codes, distances = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    step = max(1, BLOCK // len(centres))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        scores = half_norms - block @ centres.T
        codes[start : start + step] = scores.argmin(axis=1)
        distances[start : start + step] = 2 * scores.min(axis=1) + np.square(block).sum(axis=1)
    return codes, distances


def _kmeans(patches: np.ndarray, counts: np.ndarray, codes: int) -> np.ndarray:
    """Centres u8[E D], at most ``codes``, of patches u8[n D] weighted by ``counts``: Lloyd's algorithm from the first patches.

    A centre that is the nearest to no patch moves to one of the patches with the largest weighted error.
    """
    rows = _centred(patches)
    centres = rows[:codes].copy()
    for _ in range(KMEANS_STEPS):
        nearest, distances = _nearest(rows, centres)
        order = np.argsort(nearest, kind="stable")
        used, starts = np.unique(nearest[order], return_index=True)
        weights = np.bincount(nearest, counts, minlength=codes)
        sums = np.add.reduceat(rows[order] * counts[order, None].astype(np.float32), starts)
        centres[used] = sums / weights[used, None]
        unused = np.flatnonzero(weights == 0)
        centres[unused] = rows[np.argsort(-distances * counts, kind="stable")[: len(unused)]]
    rounded = np.rint(centres[np.argsort(-weights, kind="stable")] + 128).astype(np.uint8)
    _, first = np.unique(_hashes(rounded, seed=0), return_index=True)
    return rounded[np.sort(first)]
