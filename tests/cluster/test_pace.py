"""What a step may take follows from the steps before it, and the process that holds the others up is named."""

import pytest

from lumina_jax.cluster.pace import Pace, StepTimes, slowest
from lumina_jax.config import PodConfig

pytestmark = pytest.mark.smoke


def limit_after(steps: int, seconds: float, **limits: float) -> float:
    """The limit of the next step after some of ``seconds`` each."""
    times = StepTimes.of(PodConfig(**limits))
    for number in range(steps + 1):
        times.add(number * seconds, 0.0, 0.0)
    return times.limit


@pytest.mark.parametrize(
    ("steps", "seconds", "limits", "expected"),
    [
        (4, 30.0, {}, 0.0),
        (5, 30.0, {}, 600.0),
        (200, 0.5, {}, 120.0),
        (9, 300.0, {}, 1800.0),
        (9, 30.0, {"step_timeout": 45.0}, 45.0),
    ],
)
def test_the_limit_of_a_step_follows_from_the_median(steps, seconds, limits, expected):
    assert limit_after(steps, seconds, **limits) == expected


def test_a_compilation_among_the_steps_changes_no_limit():
    times = StepTimes(0, 1800)
    for now in (0, 900, 910, 920, 930, 940, 950):
        times.add(now, 0, 0)
    assert times.limit == 200


def test_own_work_is_what_the_devices_are_not_waited_for():
    times = StepTimes(0, 1800)
    times.add(10.0, 0.0, 0.0)
    times.add(12.0, 0.5, 1.25)
    assert times.pace == pytest.approx(Pace(2.0, 0.5, 0.75))


def test_the_process_that_makes_the_others_wait_is_named():
    fast = {f"process {index} on h{index}": Pace(1.0, 0.01, 0.05) for index in range(3)}
    assert slowest(fast) == "" and slowest({}) == ""
    line = slowest({**fast, "process 3 on h3": Pace(1.0, 0.8, 0.9)})
    assert line == (
        "slowest: process 3 on h3 works 0.90 s of each step of 1.00 s by itself, 0.80 s of it reading (the middle process 0.05 s)"
    )
