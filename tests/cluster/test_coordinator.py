"""The coordinator holds many connections, whatever the soft limit of open files and whoever else comes to its port."""

import resource
import socket
import time
from dataclasses import replace

import pytest
from simulated_processes import simulate

from lumina_jax.cluster.connection import allow_connections
from lumina_jax.cluster.coordinator import Coordinator, heartbeat_seconds
from lumina_jax.cluster.slices import chosen_slices, complete_slices, on_slices, slice_counts
from lumina_jax.config import DataConfig, Experiment, MeshConfig, PodConfig
from lumina_jax.errors import StorageError
from lumina_jax.open_files import SPARE_FILES

PROCESSES = 48
"""Of the simulated run; tests/bench/coordination.py takes thousands."""


@pytest.fixture
def soft_limit():
    """The soft limit of open files, as it is and will be again."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_simulated_processes_join_meet_and_learn_of_a_death():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    coordinator, start = Coordinator(port, PROCESSES, PodConfig(), b"token"), time.monotonic()
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        times = simulate(port, range(PROCESSES), start, b"token", dies=PROCESSES - 1)
    assert start < times.hello <= times.begun <= times.released <= times.died <= times.told < start + 60
    assert coordinator.paces()["process 0 on host0"].reading == 0.1
    assert coordinator.others_gone.wait(10)


def test_the_soft_limit_of_open_files_is_raised_and_the_hard_one_named(soft_limit, monkeypatch):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    allow_connections(700)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 700 + SPARE_FILES
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    with pytest.raises(StorageError, match=r"10000 processes, which needs 10256 open files, but 4096 .*ulimit -Hn"):
        allow_connections(10_000)


@pytest.mark.parametrize(("processes", "timeout", "seconds"), [(4, 60, 1), (4096, 60, 8), (4096, 20, 5), (1, 5, 1)])
def test_many_processes_send_fewer_signs_of_life_but_four_within_their_limit(processes, timeout, seconds):
    assert heartbeat_seconds(processes, PodConfig(heartbeat_timeout=timeout)) == seconds


def test_slices_are_complete_with_all_their_processes_and_chosen_by_their_number():
    assert complete_slices({0, 1, 2, 4, 5}, 6, 3) == [0, 2]
    assert chosen_slices([0, 2, 3], {1, 2, 4}) == [0, 2]
    assert chosen_slices([1], {2}) == []


@pytest.mark.parametrize(
    ("mesh", "batch", "counts"),
    [
        (dict(replica=4, fsdp=2), 16, (1, 2, 4)),
        (dict(replica=4, fsdp=1), 12, (1, 2, 3, 4)),
        (dict(replica=4, fsdp=2), 24, (1, 2, 3, 4)),
        (dict(replica=2, fsdp=2), 16, (2, 4)),
        (dict(replica=-1, fsdp=2), 16, (1, 2, 4)),
    ],
)
def test_rows_and_replicas_say_with_how_many_slices_a_run_can_go_on(mesh, batch, counts):
    cfg = Experiment(mesh=MeshConfig(**mesh), data=DataConfig(batch=batch, row_multiple=batch), pod=PodConfig(slices=4))
    assert slice_counts(cfg) == counts


def test_with_fewer_slices_there_are_fewer_replicas_and_nothing_else_changes():
    cfg = Experiment(mesh=MeshConfig(replica=4), pod=PodConfig(slices=4))
    assert on_slices(cfg, 3) == replace(cfg, mesh=replace(cfg.mesh, replica=3))
    assert on_slices(cfg, 4) is cfg
