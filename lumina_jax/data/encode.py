"""Crops -> grids of codes on the devices of this host, in batches of few shapes."""

import functools
from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.pictures import pixels
from lumina_jax.progress import waiting

MAX_PIXELS = 2**20
"""The most pixels that a device encodes at once: four crops of 512², one of 1024². That fills any chip."""

IN_FLIGHT = 2
"""Batches given to the devices whose codes are not fetched yet, so that the host prepares the next while they run."""


@dataclass(frozen=True)
class BatchEncoder:
    """An image tokenizer copied to every device of ``mesh``, each encoding its own rows; without a mesh it runs on the host.

    The codes do not depend on the number of devices: each runs the same program on batches of the same shape.
    """

    vq: ImageTokenizer
    max_rows: int
    mesh: Mesh | None
    _compiled: set[tuple[int, int]] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def on_devices(cls, vq: ImageTokenizer, max_rows: int, devices: list[jax.Device] | None = None) -> "BatchEncoder":
        """At most ``max_rows`` pictures at once, fewer of large ones, on each of ``devices`` (default: all of this host)."""
        if not vq.on_devices:
            return cls(vq, max_rows, None)
        mesh = Mesh(np.array(devices or jax.local_devices()), ("device",))
        return cls(jax.device_put(vq, NamedSharding(mesh, P())), max_rows, mesh)

    @property
    def devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def rows(self, size: tuple[int, int]) -> int:
        """The batch size of one device for pictures of ``size`` (width, height)."""
        return max(1, min(self.max_rows, MAX_PIXELS // (size[0] * size[1])))

    def __call__(self, batches: list[np.ndarray]) -> jax.Array | np.ndarray:
        """At most one batch u8[B Y X 3] per device, B <= :meth:`rows` -> codes i32[devices*rows R C], in the order of batches.

        On devices missing and short batches are padded, so that each size compiles once; on the host codes are i32[B R C].
        """
        if self.mesh is None:
            return self.vq.encode(_values()[batches[0]])
        _, height, width, _ = batches[0].shape
        rows = self.rows((width, height))
        filled = np.zeros((self.devices, rows, height, width, 3), np.uint8)
        for rows_of_device, batch in zip(filled, batches, strict=False):
            rows_of_device[: len(batch)] = batch
        values = _values()[filled.reshape(-1, height, width, 3)]
        new = (width, height) not in self._compiled
        self._compiled.add((width, height))
        with waiting(f"compiling the image tokenizer for {width}x{height} px, once", show=new):
            return self.vq.encode(jax.device_put(values, NamedSharding(self.mesh, P("device"))))


class GridEncoder:
    """Encodes the images of one shard in batches of one size, in whatever order the sizes come.

    Which images share a batch depends on their order alone: making a shard again, on any number of devices, gives the same
    codes bit for bit.
    """

    def __init__(self, encoder: BatchEncoder):
        self._encoder = encoder
        self._grids: dict[Hashable, np.ndarray] = {}
        self._waiting: dict[tuple[int, int], list[tuple[Hashable, np.ndarray]]] = defaultdict(list)
        self._running: deque[tuple[list[list[Hashable]], jax.Array | np.ndarray]] = deque()

    def add(self, key: Hashable, crop: np.ndarray) -> None:
        """Takes a crop u8[Y X 3]; ``grids()[key]`` will be its grid i32[R C]."""
        size = (crop.shape[1], crop.shape[0])
        self._waiting[size].append((key, crop))
        if len(self._waiting[size]) == self._encoder.rows(size) * self._encoder.devices:
            self._start(size)

    def flush(self) -> None:
        """Starts the batches that are not full yet. Nothing may be added afterwards."""
        for size in list(self._waiting):
            self._start(size)

    def grids(self) -> dict[Hashable, np.ndarray]:
        """All grids by key; call :meth:`flush` first. Waits for the devices."""
        while self._running:
            self._fetch()
        return self._grids

    def _start(self, size: tuple[int, int]) -> None:
        waiting, rows = self._waiting.pop(size), self._encoder.rows(size)
        groups = [waiting[first : first + rows] for first in range(0, len(waiting), rows)]
        codes = self._encoder([np.stack([crop for _, crop in group]) for group in groups])
        self._running.append(([[key for key, _ in group] for group in groups], codes))
        if len(self._running) > IN_FLIGHT:
            self._fetch()

    def _fetch(self) -> None:
        groups, codes = self._running.popleft()
        codes = np.asarray(codes)
        # Only the last group may be short, so the padding comes after all keys.
        self._grids.update(zip([key for group in groups for key in group], codes, strict=False))


@functools.cache
def _values() -> np.ndarray:
    """f32[256]: pixels.to_pixels of each level. A table look-up is many times as fast as computing it for every pixel."""
    levels = np.arange(256, dtype=np.uint8)[None]
    return pixels.to_pixels(Image.fromarray(np.stack([levels] * 3, -1), "RGB"))[0, :, 0]
