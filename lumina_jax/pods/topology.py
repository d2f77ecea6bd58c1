"""Resolves "v5p:4x4x4" to the devices of that slice, as the TPU compiler describes them. It needs libtpu, but no chip.

Set :func:`environment` before importing jax.
"""

import importlib.util
import itertools
import math
from dataclasses import dataclass

from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.pods.chips import CHIPS, Chip

NOT_YET = ("tpu8i", "tpu8t")
"""Chips that exist, but whose names the TPU compiler refuses (libtpu 0.0.42 to 0.0.48)."""

SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = itertools.combinations_with_replacement(range(4, 29, 4), 3)
SHAPES_3D = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *_CUBES)
"""A single chip, then the slices that Google Cloud rents, from one host to cubes of 4 x 4 x 4 side by side."""


def environment() -> dict[str, str]:
    """Environment variables that keep libtpu from querying for a TPU or locking one; set them before importing jax."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }


@dataclass(frozen=True)
class Topology:
    """``slices`` equal slices of ``shape`` chips each, connected by the data-center network. Arrays lie on the devices of its chips
    (:mod:`lumina_jax.pods.chips`)."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices} x {name}"

    @property
    def chips(self) -> int:
        """The number of chips in all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def device_count(self) -> int:
        """The number of devices in all slices: what a mesh is made of."""
        return self.chips * self.chip.devices

    @property
    def cloud(self) -> str:
        """Google Cloud's name of one slice, such as v5p-128."""
        chips = math.prod(self.shape)
        return self.chip.cloud.format(chips=chips, cores=chips * self.chip.cores * self.chip.devices)

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which of three axes close to a ring: of a 3D shape all when no side is below 4, of a 2D shape those of length 16."""
        if self.chip.axes == 3:
            return (min(self.shape) >= 4,) * 3
        return (*(size == 16 for size in self.shape), False)

    def devices(self) -> list:
        """``device_count`` devices of jax, slice by slice. Raises MissingPackageError when libtpu is not installed."""
        if importlib.util.find_spec("libtpu") is None:
            cure = "it runs on any Linux machine: pip install -r lumina_jax/pods/requirements.txt"
            raise MissingPackageError(f"the TPU compiler is not installed; {cure}")
        from jax.experimental.topologies import get_topology_desc

        # Without wrap the compiler assumes a mesh with edges and turns a gather over all chips into a padded all-reduce.
        # Without "megacore" the two cores of a v4 or v5p chip would be two devices; TPU7x has no such mode.
        description = get_topology_desc(
            platform="tpu",
            topology_name=f"{self.chip.system}:{'x'.join(map(str, self.shape))}",
            chip_config_name="megacore" if self.chip.cores == 2 else "default",
            chips_per_host_bounds=(1, 1, 1) if self.chips == self.slices else (2, 2, 1),
            num_slices=self.slices,
            wrap=self.wrap,
        )
        return list(description.devices)


def parse(text: str, slices: int = 1) -> Topology:
    """ "v5p:4x4x4" -> Topology. Raises InputError, naming the known chips or shapes, when one is unknown."""
    name, _, sizes = text.partition(":")
    chip = CHIPS.get(name)
    if name in NOT_YET:
        raise InputError(
            f"--topology {text}: the TPU compiler does not accept {name} yet (libtpu 0.0.42 to 0.0.48 refuse the name); "
            f"choose one of {', '.join(CHIPS)}, as tpu7x:4x4x4"
        )
    if chip is None:
        raise InputError(f"--topology {text}: no chip {name!r}; the chips are {', '.join(CHIPS)}, as v5p:4x4x4")
    legal = SHAPES_2D if chip.axes == 2 else SHAPES_3D
    sides = sizes.split("x")
    shape = tuple(int(side) for side in sides if side.isdecimal())
    if len(shape) != len(sides) or shape not in legal:
        small = ", ".join("x".join(map(str, known)) for known in legal[:8])
        rest = "" if chip.axes == 2 else ", and larger ones of multiples of 4 up to 28, smallest first"
        raise InputError(f"--topology {text}: {name} has no slice of {sizes or 'no size'}; choose {small}{rest}")
    if slices < 1:
        raise InputError(f"--slices {slices}; it must be at least 1")
    return Topology(chip, shape, slices)
