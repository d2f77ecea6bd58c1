"""From "v5p:4x4x4" to the devices of that slice, as the TPU compiler sees them. No chip is needed, only libtpu.

JAX must be imported after :func:`environment` is set.
"""

import importlib.util
import itertools
import math
from dataclasses import dataclass

from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.pods.chips import CHIPS, Chip

SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SHAPES_3D = (
    (1, 1, 1),
    (2, 2, 1),
    (2, 2, 2),
    (2, 2, 4),
    (2, 4, 4),
    *itertools.combinations_with_replacement(range(4, 29, 4), 3),
)
"""One chip of a host, then the slices that can be rented: from one host to cubes of 4 x 4 x 4 side by side."""


def environment() -> dict[str, str]:
    """What libtpu wants to find before jax is imported, so that it neither asks for a TPU nor fights over one."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }


@dataclass(frozen=True)
class Topology:
    """``slices`` equal slices of ``shape`` chips, joined by the data-center network."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices} x {name}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def cloud(self) -> str:
        """One slice in Google Cloud's words, such as v5p-128."""
        chips = math.prod(self.shape)
        return self.chip.cloud.format(chips=chips, cores=chips * self.chip.cores)

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which of three axes close to a ring: in 3D all or none, from a cube of 4 on; in 2D the full 16 only."""
        if self.chip.axes == 3:
            return (min(self.shape) >= 4,) * 3
        return (*(size == 16 for size in self.shape), False)

    def devices(self) -> list:
        """The chips as jax devices, in slices. Raises ImportError when libtpu is not installed."""
        if importlib.util.find_spec("libtpu") is None:
            raise MissingPackageError(
                "the TPU compiler is not installed; it runs on any Linux machine: pip install -r lumina_jax/pods/requirements.txt"
            )
        from jax.experimental.topologies import get_topology_desc

        # Without wrap the compiler sees a mesh with edges, and a gather over all chips becomes a padded all-reduce.
        # Without "megacore" the two cores of a chip would be two devices.
        found = get_topology_desc(
            platform="tpu",
            topology_name=f"{self.chip.system}:{'x'.join(map(str, self.shape))}",
            chip_config_name="megacore" if self.chip.cores == 2 else "default",
            chips_per_host_bounds=(1, 1, 1) if self.chips == self.slices else (2, 2, 1),
            num_slices=self.slices,
            wrap=self.wrap,
        )
        return list(found.devices)


def parse(text: str, slices: int = 1) -> Topology:
    """ "v5p:4x4x4" -> Topology. Raises ValueError naming the chips or the shapes there are."""
    name, _, sizes = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise InputError(f"--topology {text}: no chip {name!r}; the chips are {', '.join(CHIPS)}, as v5p:4x4x4")
    legal = SHAPES_2D if chip.axes == 2 else SHAPES_3D
    words = sizes.split("x")
    shape = tuple(int(word) for word in words if word.isdecimal())
    if len(shape) != len(words) or shape not in legal:
        small = ", ".join("x".join(map(str, known)) for known in legal[:8])
        rest = "" if chip.axes == 2 else " and on: multiples of 4 up to 28, smallest first"
        raise InputError(f"--topology {text}: {name} has no slice of {sizes or 'no size'}; there are {small}{rest}")
    if slices < 1:
        raise InputError(f"--slices {slices}; it must be at least 1")
    return Topology(chip, shape, slices)
