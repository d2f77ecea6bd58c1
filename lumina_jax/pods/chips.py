"""Peak figures of each kind of TPU, all per device of JAX.

A TensorCore runs the program; a chip has one or two of them. A device is what JAX lists, and what one part of an array lies on. On
v4 and v5p the two cores of a chip act as one device, v5e and v6e have one core, so there a device is a chip. On TPU7x (Ironwood)
each of the two cores is a device with half of the chip's memory and links.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of TPU chip; all rates and sizes are those of one device, of which a chip has ``devices``.

    In operations per second: ``flops`` of bfloat16, ``int8`` and ``fp8`` of 8-bit products, zero where the matrix unit has none of
    its own. ``hbm`` is what a program may fill in bytes: the capacity that the compiler names when it refuses one, a little below
    the nominal memory. In bytes/s: ``bandwidth`` of HBM, ``ici`` of all inter-chip links one way, ``dcn`` of the device's share of
    its host's network. ``clock`` is in Hz. ``cores`` TensorCores act as one device. ``axes`` is the dimension of the torus.
    ``system`` is the compiler's name; ``cloud`` formats Google Cloud's name of a slice, which counts TensorCores or chips.
    """

    name: str
    flops: float
    int8: float
    fp8: float
    hbm: float
    bandwidth: float
    ici: float
    dcn: float
    clock: float
    cores: int
    axes: int
    system: str
    cloud: str
    devices: int = 1

    def peak(self, dtype: str) -> float:
        """Operations per second of products whose operands have that dtype, as HLO names it."""
        narrow = self.int8 if dtype in ("s8", "u8") else self.fp8 if dtype.startswith("f8") else 0
        return narrow or self.flops

    @property
    def unit(self) -> str:
        """What the figures are of, in words."""
        return "chip" if self.devices == 1 else "device"


_ALL = (
    Chip("v4", 275e12, 0, 0, 30.75 * GIB, 1.228e12, 6 * 45e9, 6.25e9, 1.05e9, 2, 3, "v4", "v4-{cores}"),
    Chip("v5e", 197e12, 394e12, 0, 15.75 * GIB, 0.819e12, 4 * 45e9, 3.125e9, 1.5e9, 1, 2, "v5e", "v5litepod-{chips}"),
    Chip("v5p", 459e12, 918e12, 0, 95.74 * GIB, 2.765e12, 6 * 90e9, 6.25e9, 1.75e9, 2, 3, "v5", "v5p-{cores}"),
    Chip("v6e", 918e12, 1836e12, 918e12, 31.25 * GIB, 1.638e12, 4 * 90e9, 12.5e9, 1.75e9, 1, 2, "v6e", "v6e-{chips}"),
    # Half a chip of 1200 GB/s both ways over three axes: that the two devices share its links evenly is assumed. Google
    # publishes no clock: this one follows from the peak, at 524,288 operations a cycle.
    Chip("tpu7x", 1155e12, 0, 2300e12, 94.74 * GIB, 3.7e12, 300e9, 6.25e9, 2.2e9, 1, 3, "tpu7x", "tpu7x-{cores}", 2),
)
CHIPS = {chip.name: chip for chip in _ALL}
