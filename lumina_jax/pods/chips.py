"""Peak figures of each kind of TPU, all per chip (not per core)."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of TPU chip.

    ``flops`` counts bfloat16 operations per second. ``hbm`` is what a program may fill in bytes: the capacity that the compiler
    names when it refuses one, a little below the nominal memory. In bytes/s: ``bandwidth`` of HBM, ``ici`` of all inter-chip
    links one way, ``dcn`` of the chip's share of its host's network. ``clock`` is in Hz. ``cores`` TensorCores act as one
    device. ``axes`` is the dimension of the torus. ``system`` is the compiler's name; ``cloud`` formats Google Cloud's name of a
    slice, which counts cores or chips.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    ici: float
    dcn: float
    clock: float
    cores: int
    axes: int
    system: str
    cloud: str


_ALL = (
    Chip("v4", 275e12, 30.75 * GIB, 1.228e12, 6 * 45e9, 6.25e9, 1.05e9, 2, 3, "v4", "v4-{cores}"),
    Chip("v5e", 197e12, 15.75 * GIB, 0.819e12, 4 * 45e9, 3.125e9, 1.5e9, 1, 2, "v5e", "v5litepod-{chips}"),
    Chip("v5p", 459e12, 95.74 * GIB, 2.765e12, 6 * 90e9, 6.25e9, 1.75e9, 2, 3, "v5", "v5p-{cores}"),
    Chip("v6e", 918e12, 31.25 * GIB, 1.638e12, 4 * 90e9, 12.5e9, 1.75e9, 1, 2, "v6e", "v6e-{chips}"),
)
CHIPS = {chip.name: chip for chip in _ALL}
