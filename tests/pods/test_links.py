"""The links that a collective can use, from its replica groups and the places of the chips."""

import numpy as np
import pytest

from lumina_jax.errors import InputError
from lumina_jax.pods.collectives import Network
from lumina_jax.pods.links import (
    DIE_LINKS,
    algorithm_links,
    axis_links,
    default_places,
    group_links,
    permute_links,
    places,
    replica_groups,
    source_target_pairs,
)
from lumina_jax.pods.topology import parse

TORUS = parse("v5p:4x4x4")
PLANE = parse("v6e:4x4")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1,2,3},{4,5,6,7}}, dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("{}, to_apply=%add", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0), dimensions={0}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("[2,4]<=[2,2,2]T(1,0,2), x", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=2,'b'=4,'t'=1] {'b'}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4,'t'=1] {'a'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b','a'}, x", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}, x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(2)2}, x", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=(7,6,5,4,3,2,1,0) {'b'}, x", [[7, 6], [5, 4], [3, 2], [1, 0]]),
    ],
)
def test_replica_groups_are_read_in_all_notations(text, groups):
    assert replica_groups(f"all-gather(%x), replica_groups={text}", 8).tolist() == groups


def test_text_without_groups_and_in_an_unknown_notation():
    assert replica_groups("all-gather(%x), dimensions={0}", 8) is None
    with pytest.raises(ValueError, match="unknown notation of replica groups: replica_groups=<all>"):
        replica_groups("all-gather(%x), replica_groups=<all>", 8)


@pytest.mark.parametrize(
    ("values", "size", "wraps", "links"),
    [
        ({3}, 4, True, 0),
        ({0, 1, 2, 3}, 4, True, 2),
        ({0, 1, 2, 3}, 4, False, 1),
        # A part of a ring is a line; one chip in four of a ring of 16 shares it with three other groups.
        ({4, 5, 6, 7}, 16, True, 1),
        ({0, 4, 8, 12}, 16, True, 0.5),
        ({0, 2}, 4, False, 0.5),
        ({0, 3}, 4, True, 1),
    ],
)
def test_links_of_one_axis(values, size, wraps, links):
    assert axis_links(values, size, wraps) == links


@pytest.mark.parametrize(
    ("topology", "groups", "links"),
    [
        (TORUS, "[16,4]<=[64]", 2),
        (TORUS, "[4,16]<=[64]", 4),
        (TORUS, "[16,4]<=[4,16]T(1,0)", 2),
        (TORUS, "[1,64]<=[64]", 6),
        (PLANE, "[4,4]<=[16]", 1),
        (PLANE, "[1,16]<=[16]", 2),
        (parse("v6e:16x16"), "[16,16]<=[16,16]T(1,0)", 2),
        (parse("v6e:16x16"), "[1,256]<=[256]", 4),
    ],
)
def test_a_group_uses_the_links_of_the_axes_it_spans(topology, groups, links):
    devices = topology.chips
    order = default_places(topology, devices)
    assert group_links(replica_groups(f"replica_groups={groups}", devices), order, topology) == links


def test_a_group_is_placed_by_the_order_of_the_mesh():
    order = default_places(PLANE, 16)
    rows = replica_groups("replica_groups=[8,2]<=[16]", 16)
    assert group_links(rows, order, PLANE) == 1
    assert group_links(rows, order[::2] + order[1::2], PLANE) == 0.5
    # A diagonal has one chip of each row, so four groups share the square of them.
    diagonals = [[4 * y + (x + y) % 4 for y in range(4)] for x in range(4)]
    assert group_links(np.array(diagonals), order, PLANE) == 2 / 4
    with pytest.raises(InputError, match="a device 15, and the program's order only 8 devices"):
        group_links(rows, order[:8], PLANE)


def test_two_devices_of_a_chip_exchange_over_the_chip():
    order = default_places(TORUS, 128)
    assert order[:3] == ((0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0))
    assert group_links(replica_groups("replica_groups=[64,2]<=[128]", 128), order, TORUS) == DIE_LINKS
    assert group_links(replica_groups("replica_groups=[16,8]<=[128]", 128), order, TORUS) == 2
    network = Network(TORUS, 128)
    rings = '"color_strategies":[{"phase_rings":[1]},{"phase_rings":[2]}]'
    for groups, links in (("[64,2]<=[128]", DIE_LINKS), ("[16,8]<=[128]", 4), ("[32,4]<=[16,4,2]T(0,2,1)", 2)):
        assert network.routes(f"all-gather(%x), replica_groups={groups}, backend_config={{{rings}}}")[0] == links
    assert permute_links([(0, 1), (1, 0)], order, TORUS) == (DIE_LINKS, frozenset())
    # Both devices of every chip send to the next one and share the link between them.
    assert permute_links([(n, (n + 2) % 8) for n in range(8)], order, TORUS)[0] == 1


@pytest.mark.parametrize(
    ("pairs", "links", "busy"),
    [
        ("{0,1},{1,2},{2,3},{3,0}", 1, {(x, 0, 0, 0, 1) for x in range(4)}),
        ("{0,3},{1,0},{2,1},{3,2}", 1, {(x, 0, 0, 0, -1) for x in range(4)}),
        ("{0,1},{0,2}", 0.5, {(0, 0, 0, 0, 1), (1, 0, 0, 0, 1)}),
        ("{0,5}", 1, {(0, 0, 0, 0, 1), (1, 0, 0, 1, 1)}),
    ],
)
def test_a_permute_shares_its_busiest_link(pairs, links, busy):
    found = source_target_pairs(f"collective-permute(%x), source_target_pairs={{{pairs}}}, channel_id=1")
    assert permute_links(found, default_places(TORUS, 64), TORUS) == (links, busy)


def test_an_algorithm_over_one_axis_uses_two_links():
    assert algorithm_links('"emitter":"1DAllGatherNonMajorDim"') == 2
    assert algorithm_links('"emitter":"2DAllGatherOnMajorDim"') == 4
    assert algorithm_links('"emitter":"SinglePhaseRingSumEmitter","strategy":"StrategyRing"') == 2
    assert algorithm_links('"color_strategies":[{"phase_rings":[1]},{"phase_rings":[2]}]') == 2
    assert algorithm_links('"strategy":"StrategyND"') == float("inf")


def test_a_program_of_other_devices_than_the_topology_is_refused():
    assert len(default_places(parse("v5e:4x4", slices=2), 16)) == 16
    with pytest.raises(InputError, match="a program of 12 devices does not fit v6e:4x4: a slice has 16 chips"):
        default_places(PLANE, 12)
    with pytest.raises(InputError, match="the program has 16 devices, the order of its mesh 8"):
        Network(PLANE, 16, default_places(PLANE, 16)[:8])


@pytest.mark.parametrize(
    ("name", "size", "emitter"),
    [("v5p:4x4x4", 16, "2DAllGatherOnMajorDim"), ("v5p:4x4x4", 4, "1DAllGatherNonMajorDim")],
)
def test_ids_in_replica_groups_are_positions_in_the_order_of_the_mesh(name, size, emitter, tpu_compiler):
    """The compiler gathers over planes of the torus where the mesh has them; in a shuffled mesh the same ids are elsewhere."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = parse(name)
    devices = sorted(topology.devices(), key=lambda device: device.coords)
    shuffled = [devices[n] for n in np.random.default_rng(0).permutation(len(devices))]
    links = []
    for order in (devices, shuffled):
        mesh = Mesh(np.array(order).reshape(-1, size), ("a", "b"))
        split, whole = NamedSharding(mesh, PartitionSpec("b")), NamedSharding(mesh, PartitionSpec())
        step = jax.jit(lambda x: x * 2, in_shardings=split, out_shardings=whole)
        text = step.lower(jax.ShapeDtypeStruct((size * 256, 1024), jnp.bfloat16)).compile().as_text()
        (gather,) = (line for line in text.split("\n") if " all-gather(" in line)
        assert replica_groups(gather, 64).tolist() == np.arange(64).reshape(-1, size).tolist()
        assert (emitter in gather) == (order is devices or size == 4)
        links.append(Network(topology, 64, places(order)).routes(gather)[0])
    assert links[0] == {4: 2, 16: 4}[size]
    assert links[1] < links[0]
