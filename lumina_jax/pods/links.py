"""Which inter-chip links a collective can use: from its replica groups, by the places of their chips, to axes of the torus.

The ids in replica groups and permutes are positions in the device order of the program's mesh, not ids of chips; that order says
where each of them lies. A chip has two links on each axis of its torus. A group that fills an axis which wraps round uses both; on
an open axis, or on a part of one, the chip at an end receives everything over one link. No collective of a group gets more links
than the axes that its algorithm moves data along.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.pods.topology import Topology

DIE_LINKS = 12
"""The two devices of a chip exchange at six times the rate of a link between chips, of which each has half (Google on TPU7x)."""

EVERY_LINK = frozenset({"every link"})
"""The links that a collective keeps busy; of a permute they are (x, y, z, axis, direction) of the chip that sends."""

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_NAME = r"'?([\w\-]+)'?"


class Place(NamedTuple):
    """Where a device lies: the coordinates of its chip in the torus, and which of the chip's devices it is."""

    x: int
    y: int
    z: int
    core: int


def places(devices: Iterable[jax.Device]) -> tuple[Place, ...]:
    """The places of TPU devices in their order, which for a program is that of its mesh.

    Of several slices those of the first: the compiler makes one program of each slice, which numbers its own devices.
    """
    known = list(devices)
    slices = [getattr(device, "slice_index", 0) for device in known]
    return tuple(Place(*d.coords, d.core_on_chip) for d, of in zip(known, slices, strict=True) if of == slices[0])


def default_places(topology: Topology, devices: int) -> tuple[Place, ...]:
    """The places of the ``devices`` of one slice in the order of their ids: x counts fastest, then y, then z.

    Raises InputError when the chips of the slice do not divide the number.
    """
    x, y, z = three_sides(topology)
    cores, rest = divmod(devices, x * y * z)
    if rest or not cores:
        raise InputError(f"a program of {devices} devices does not fit {topology}: a slice has {x * y * z} chips")
    order = itertools.product(range(z), range(y), range(x), range(cores))
    return tuple(Place(i, j, k, core) for k, j, i, core in order)


def three_sides(topology: Topology) -> tuple[int, int, int]:
    x, y, z = (*topology.shape, 1)[:3]
    return x, y, z


def replica_groups(text: str, devices: int) -> np.ndarray | None:
    """The groups [groups size] of positions (int) in any of XLA's notations; None without groups, or of unequal sizes.

    They are lists of ids, ``[groups,size]<=[dims]T(order)`` (the ids 0.. shaped, transposed and shaped again) and
    ``mesh['a'=4,'b'=16] {'b'}`` (all ids that differ in the named axes only). No ids at all stand for one group of everything.
    Raises ValueError when there are groups in another notation.
    """
    if "replica_groups=" not in text:
        return None
    if "replica_groups={}" in text:
        return np.arange(devices)[None]
    if explicit := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", text):
        groups = [[int(n) for n in ids.split(",")] for ids in re.findall(r"\{([\d,]+)\}", explicit[1])]
        return np.array(groups) if len(set(map(len, groups))) == 1 else None
    if iota := _IOTA.search(text):
        return _iota(*iota.groups())
    if mesh := _MESH.search(text):
        return _mesh_groups(*mesh.groups())
    notation = text[text.index("replica_groups=") :][:80]
    raise ValueError(f"unknown notation of replica groups: {notation}")


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(shape: str, dims: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(_numbers(shape))


def _mesh_groups(mesh: str, device_ids: str, axes: str) -> np.ndarray:
    """Groups over ``axes`` of a mesh; an axis ``'a':(2)4`` is the part of size 4 after (inside of) a part of size 2."""
    sizes = {name: int(size) for name, size in re.findall(_NAME + r"=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values()))
    if iota := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", device_ids):
        ids = _iota("-1", *iota.groups())
    elif listed := re.search(r"device_ids=\(([\d,\s]+)\)", device_ids):
        ids = np.array(_numbers(listed[1]))
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for name, before, size in re.findall(_NAME + r"(?::\((\d+)\)(\d+))?", axes):
        low = int(before or 1)
        spans[name].append((low, low * int(size or sizes[name])))
    dims, inside = [], []
    for name, size in sizes.items():
        cuts = sorted({1, size, *(cut for span in spans[name] for cut in span)})
        for low, high in itertools.pairwise(cuts):
            if any(first <= low and high <= last for first, last in spans[name]):
                inside.append(len(dims))
            dims.append(high // low)
    outside = [axis for axis in range(len(dims)) if axis not in inside]
    return ids.reshape(dims).transpose(*outside, *inside).reshape(-1, math.prod(dims[axis] for axis in inside))


def source_target_pairs(text: str) -> list[tuple[int, int]]:
    """The pairs of a collective permute."""
    listed = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", listed[1])] if listed else []


def axis_links(values: set[int], size: int, wraps: bool) -> float:
    """Links a chip has on one axis of ``size`` for a group that lies at ``values`` on it; groups between share them."""
    if len(values) < 2:
        return 0
    known = sorted(values)
    gaps = [high - low for low, high in itertools.pairwise(known)]
    if not wraps:
        return 1 / max(gaps)
    *_, second, largest = sorted([*gaps, known[0] + size - known[-1]])
    return max(2 / largest, 1 / second)  # round the ring, or along a line that leaves out the largest gap


def group_links(groups: np.ndarray, order: Sequence[Place], topology: Topology) -> float:
    """Links that every one of ``groups`` can use: those of the worst placed. A group that does not fill the box of its
    coordinates shares it with others.

    Raises InputError for a position that the order does not have.
    """
    _check_positions(groups.max(), order)
    worst = math.inf
    for group in groups:
        chips = {order[position][:3] for position in group}
        axes = [set(values) for values in zip(*chips, strict=True)]
        sides = zip(axes, three_sides(topology), topology.wrap, strict=True)
        links = sum(axis_links(values, size, wraps) for values, size, wraps in sides)
        worst = min(worst, links * len(chips) / math.prod(map(len, axes)) or DIE_LINKS)
    return worst


def together(groups: np.ndarray, order: Sequence[Place]) -> int:
    """How many devices of a chip are in one group. Each brings its part of the data in and hands it to the others of its chip."""
    return max(Counter(order[position][:3] for position in groups[0]).values())


def _check_positions(highest: int, order: Sequence[Place]) -> None:
    if highest >= len(order):
        raise InputError(f"a collective has a device {highest}, and the program's order only {len(order)} devices")


def permute_links(
    pairs: Sequence[tuple[int, int]], order: Sequence[Place], topology: Topology
) -> tuple[float, frozenset]:
    """(links, busy ones) of a permute: one link, divided by the messages that the busiest one carries.

    Messages travel axis after axis, the shorter way round. Raises InputError for a position that the order does not have.
    """
    _check_positions(max(map(max, pairs)), order)
    load: Counter[tuple] = Counter()
    for source, target in pairs:
        at = list(order[source][:3])
        for axis, (size, wraps) in enumerate(zip(three_sides(topology), topology.wrap, strict=True)):
            hops = order[target][axis] - at[axis]
            if wraps and abs(hops) > size / 2:
                hops -= int(math.copysign(size, hops))
            step = 1 if hops > 0 else -1
            for _ in range(abs(hops)):
                load[(*at, axis, step)] += 1
                at[axis] = (at[axis] + step) % size
    if not load:
        return DIE_LINKS, frozenset()
    cores = 1 + max(place.core for place in order)  # which share the links of their chip
    return cores / max(load.values()), frozenset(load)


def algorithm_links(text: str) -> float:
    """The most links that the compiler's algorithm uses: two for each axis of a ring, as its name says; else unlimited.

    On a SparseCore each "color" is a ring in one direction, over the whole of which a share of the data travels.
    """
    if "color_strategies" in text:
        return text.partition("constant_propagation_config")[0].count('"phase_rings"')
    if gather := re.search(r'"emitter":"(\d)DAllGather', text):
        return 2 * int(gather[1])
    return 2 if '"strategy":"StrategyRing"' in text else math.inf
