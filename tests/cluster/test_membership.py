"""What a run does after each event of its processes, with a clock that the tests set."""

import json
import socket

import pytest

from lumina_jax.cluster.address import Address, find_address
from lumina_jax.cluster.connection import Connection
from lumina_jax.cluster.membership import GRACE_SECONDS, Membership
from lumina_jax.cluster.pace import Pace
from lumina_jax.config import PodConfig
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

LIMITS = PodConfig(join_timeout=300, stall_timeout=1800, heartbeat_timeout=60)
VALUES = {"data.batch": "256", "jax": "0.10.2"}


def hello(membership: Membership, index: int, now: float = 0) -> list:
    """Process ``index`` joins, on host a, b, c and so on."""
    return membership.receive(index, {"kind": "hello", "host": "abcdefghijkl"[index], "doing": "its start"}, now)


def membership_of(processes: int) -> Membership:
    """A run of ``processes`` which all join at time 0."""
    membership = Membership(processes, LIMITS)
    assert not any(hello(membership, index) for index in range(processes - 1))
    begin = {"kind": "begin", "to": list(range(processes)), "slices": [0]}
    assert hello(membership, processes - 1) == [begin]
    return membership


def send(
    membership: Membership, index: int, now: float, kind: str = "heartbeat", doing: str = "its start", **rest
) -> list:
    return membership.receive(index, {"kind": kind, "doing": doing, **rest}, now)


def enter_barrier(membership: Membership, index: int, now: float, values: dict | None = None) -> list:
    return send(membership, index, now, "barrier", barrier="the save", timeout=300, values=values or {})


def end_of(messages: list) -> tuple[str, int]:
    """(reason, exit code) of the one message, which ends the run."""
    (message,) = messages
    assert message["kind"] == "end"
    return message["reason"], message["exit_code"]


@pytest.mark.smoke
def test_a_barrier_that_times_out_names_the_missing_processes_and_what_they_did_last():
    membership = membership_of(4)
    assert not enter_barrier(membership, 0, 10)
    assert not send(membership, 1, 20, doing="reading batch 7")
    assert not enter_barrier(membership, 2, 30)
    for now in range(60, 311, 50):
        for index in range(4):
            send(membership, index, now, doing="reading batch 7" if index == 1 else "its start")
        assert not membership.tick(now)
    reason, exit_code = end_of(membership.tick(311))
    assert exit_code == EXIT_RESTART and membership.ended
    assert reason == (
        "the save: waited 300 s for process 1 on b, last heard of 1 s ago, at reading batch 7 for 291 s; "
        "process 3 on d, last heard of 1 s ago, at its start for 311 s"
    )


def test_a_run_that_not_all_join_ends_and_names_the_missing():
    membership = Membership(3, LIMITS)
    assert not hello(membership, 1, 10)
    for now in range(50, 301, 50):
        send(membership, 1, now)
        assert not membership.tick(now)
    reason = "joining: waited 300 s for process 0, which never came; process 2, which never came"
    assert end_of(membership.tick(301)) == (reason, EXIT_RESTART)


def test_a_barrier_releases_all_processes_and_can_be_used_again():
    membership = membership_of(2)
    for now in (10, 20):
        assert not enter_barrier(membership, 1, now)
        assert enter_barrier(membership, 0, now) == [
            {"kind": "release", "to": [0, 1], "barrier": "the save", "returned": []}
        ]
    assert not membership.tick(30)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({**VALUES, "data.batch": "128"}, "data.batch is 256 in process 0 on a but 128 in process 2 on c"),
        ({"data.batch": "256"}, "jax is 0.10.2 in process 0 on a but None in process 2 on c"),
    ],
)
def test_a_value_that_differs_ends_the_run_and_is_named_with_both_values(other, reason):
    membership = membership_of(3)
    enter_barrier(membership, 0, 1, VALUES)
    enter_barrier(membership, 1, 1, VALUES)
    assert end_of(enter_barrier(membership, 2, 1, other)) == (reason, EXIT_ERROR)


def test_the_death_of_a_process_ends_the_run_at_once():
    membership = membership_of(2)
    send(membership, 1, 5, doing="step 12")
    assert end_of(membership.disconnected(1)) == ("process 1 on b died; it was last at step 12", EXIT_RESTART)


def test_a_process_without_heartbeats_ends_the_run_after_heartbeat_timeout():
    membership = membership_of(2)
    send(membership, 0, 50)
    assert not membership.tick(60)
    send(membership, 0, 61)
    reason = "process 1 on b has not been heard of for 61 s; it was last at its start"
    assert end_of(membership.tick(61)) == (reason, EXIT_RESTART)


def test_a_run_without_progress_prints_what_each_process_does_and_ends_after_stall_timeout():
    membership, sent = membership_of(10), []
    for now in range(50, 2001, 50):
        for index in range(10):
            send(membership, index, now, doing="reading batch 5" if index == 4 else "step 5")
        sent += [(now, message) for message in membership.tick(now)]
        if membership.ended:
            break
    times, messages = zip(*sent, strict=True)
    assert times == (400, 750, 1100, 1450, 1800, 1900)
    assert [message["kind"] for message in messages] == ["notice"] * 5 + ["end"]
    straggler, others = messages[0]["text"].split("; ")
    assert straggler == "nothing new for 350 s: process 4 on e at reading batch 5"
    assert others.startswith("process 0 on a, ") and others.endswith("process 8 on i and 1 more at step 5")


def test_an_error_in_one_process_ends_the_others_after_the_grace_period():
    membership = membership_of(2)
    assert not send(membership, 1, 10, "leave", error="ValueError: no such file", exit_code=EXIT_ERROR)
    assert not membership.disconnected(1)
    assert not membership.tick(10 + GRACE_SECONDS)
    reason = "process 1 on b ended with ValueError: no such file"
    assert end_of(membership.tick(11 + GRACE_SECONDS)) == (reason, EXIT_ERROR)


def test_an_error_that_a_restart_helps_against_restarts_the_others_too():
    membership = membership_of(2)
    assert not send(membership, 1, 10, "leave", error="OSError: [Errno 5] Input/output error", exit_code=EXIT_RESTART)
    reason = "process 1 on b ended with OSError: [Errno 5] Input/output error"
    assert end_of(membership.tick(11 + GRACE_SECONDS)) == (reason, EXIT_RESTART)


def test_when_all_processes_leave_with_an_error_none_is_ended_by_force():
    membership = membership_of(2)
    assert not send(membership, 1, 10, "leave", error="FloatingPointError: nan", exit_code=EXIT_ERROR)
    assert send(membership, 0, 11, "leave", error="FloatingPointError: nan", exit_code=EXIT_ERROR) == [
        {"kind": "all_left", "to": [0, 1]}
    ]
    assert membership.ended


def test_a_process_that_left_without_an_error_is_not_missed():
    membership = membership_of(2)
    assert not send(membership, 1, 10, "leave", error="", exit_code=0)
    assert not membership.disconnected(1)
    send(membership, 0, 100)
    assert not membership.tick(100)
    assert send(membership, 0, 101, "leave", error="", exit_code=0) == [{"kind": "all_left", "to": [0, 1]}]


def test_two_processes_with_one_index_are_named():
    membership = Membership(2, LIMITS)
    hello(membership, 0)
    assert end_of(membership.receive(0, {"kind": "hello", "host": "z", "doing": ""}, 1)) == (
        "two processes, on a and on z, both say they are process 0; give each its own --process",
        EXIT_ERROR,
    )


def test_a_second_start_of_a_process_is_turned_away_and_the_run_goes_on():
    membership = membership_of(2)
    assert "process 1 on z came to a run of the same name and port that goes on already" in membership.refusal(1, "z")
    assert not membership.ended and not membership.tick(1)


def test_a_step_has_a_limit_of_its_own_and_waits_for_one_that_compiles():
    membership = membership_of(2)
    for now in range(10, 111, 10):
        send(membership, 0, now, doing="step 7", limit=90.0)
        send(membership, 1, now, doing="compiling the step")
        assert not [message for message in membership.tick(now) if message["kind"] == "end"]
    for index in range(2):
        send(membership, index, 120, doing="step 7", limit=90.0)
    kinds = []
    for now in range(130, 241, 10):
        for index in range(2):
            send(membership, index, now, doing="step 7", limit=90.0)
        kinds += [message["kind"] for message in membership.tick(now)]
        if membership.ended:
            break
    assert now == 220 and kinds == ["notice", "end"]


def test_the_pace_of_each_process_is_known():
    membership = membership_of(2)
    send(membership, 1, 5, pace=[2.0, 0.5, 0.75])
    assert membership.paces() == {"process 1 on b": Pace(2.0, 0.5, 0.75)}


ELASTIC = PodConfig(join_timeout=300, slices=3, elastic=True, elastic_wait=30)


def test_without_a_slice_the_others_begin_and_take_it_in_after_a_save():
    """Three slices of two processes; process 3, of slice 1, is missing."""
    membership = Membership(6, ELASTIC, slice_counts=(1, 2))
    for index in (0, 1, 2, 4, 5):
        assert not hello(membership, index)
    assert not membership.tick(29)
    begin, wait = membership.tick(31)
    assert begin == {"kind": "begin", "to": [0, 1, 4, 5], "slices": [0, 2]}
    assert wait == {"kind": "wait", "to": [2], "slices": [0, 2]}

    def save(now: float) -> list[int]:
        *nothing, ((release,)) = [enter_barrier(membership, index, now) for index in (0, 1, 4, 5)]
        assert not any(nothing)
        return release["returned"]

    assert save(70) == []
    assert hello(membership, 3, 80) == [{"kind": "wait", "to": [3], "slices": [0, 2]}]
    assert save(90) == [1]
    for index in (0, 1, 4):
        assert not send(membership, index, 100, "leave", error="", exit_code=EXIT_RESTART)
    all_left, end = send(membership, 5, 100, "leave", error="", exit_code=EXIT_RESTART)
    assert all_left == {"kind": "all_left", "to": [0, 1, 4, 5]}
    assert (end["to"], end["exit_code"]) == ([2, 3], EXIT_RESTART)


def test_a_waiting_process_that_dies_does_not_end_the_run_and_one_of_the_run_does():
    membership = Membership(3, ELASTIC, slice_counts=(1, 2))
    hello(membership, 0), hello(membership, 1)
    membership.tick(31)
    hello(membership, 2, 70)
    assert not membership.disconnected(2)
    assert end_of(membership.disconnected(1))[1] == EXIT_RESTART


def test_a_run_begins_only_with_a_number_of_slices_that_it_can_use():
    membership = Membership(3, ELASTIC, slice_counts=())
    hello(membership, 0), hello(membership, 1)
    assert not membership.tick(31)
    for index in range(2):
        send(membership, index, 300)
    assert end_of(membership.tick(301))[1] == EXIT_RESTART


def test_messages_arrive_complete_however_the_network_splits_them():
    left, right = socket.socketpair()
    with left, right:
        messages = [{"kind": "heartbeat", "doing": "schön"}, {"kind": "leave", "error": ""}]
        data = "".join(json.dumps(message) + "\n" for message in messages).encode()
        connection, received = Connection(right), []
        for packet in (data[:7], data[7:60], data[60:]):
            left.sendall(packet)
            received += connection.receive()
        assert received == messages
        left.sendall(b"GET / HTTP/1.1\r\n")
        assert connection.receive() is None


def test_an_address_is_taken_from_the_arguments_or_asked_for():
    assert find_address("host:1234", 4, 3, 1) == Address("host:1234", 4, 3)
    assert Address("host:1234", 4, 3).of_coordinators() == [("host", 1235)]
    assert Address("[::1]:7,b:8", 1, 0).of_coordinators() == [("::1", 8), ("b", 9)]
    with pytest.raises(ValueError, match="--coordinator HOST:PORT"):
        find_address(None, None, None, 1)
    for coordinator, index in (("host:1234", 4), ("host:port", 3), ("1234", 3)):
        with pytest.raises(ValueError, match=f"--coordinator {coordinator} .*--process {index}: expected HOST:PORT"):
            find_address(coordinator, 4, index, 1)


@pytest.mark.parametrize("limit", ["join_timeout=0", "stall_timeout=0", "heartbeat_timeout=1"])
def test_timeouts_too_short_to_keep_are_refused(limit):
    name, _, value = limit.partition("=")
    with pytest.raises(ValueError, match=rf"pod\.{name}={value}"):
        PodConfig(**{name: float(value)})
