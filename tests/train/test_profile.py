"""A trace holds the steps of ``profile.steps``, whether the run reaches the last of them or not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData
from train_parts import experiment

from lumina_jax.config import override
from lumina_jax.train.profile import ProfiledSteps


def traced_steps(folder: Path) -> list[int]:
    """The step numbers in the only trace below ``folder``."""
    (file,) = folder.rglob("*.xplane.pb")
    (perfetto,) = folder.rglob("perfetto_trace.json.gz")
    assert perfetto.parent == file.parent
    events = (
        event for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for event in line.events
    )
    return sorted({int(dict(event.stats)["step_num"]) for event in events if event.name == "train"})


def run(tmp_path: Path, steps: str, stop: int, done: int = 0) -> list[int]:
    """Runs the steps after ``done`` up to ``stop`` by :class:`ProfiledSteps`; returns their numbers."""
    cfg, ran = override(experiment(), [f"out={tmp_path}", f"profile.steps={steps}"]), []
    add = jax.jit(lambda state, batch: (state + batch, state))

    def step(state, batch):
        ran.append(done + len(ran) + 1)
        return add(state, batch)

    profiled = ProfiledSteps(cfg, step, done)
    for _ in range(done, stop):
        state, metrics = profiled(jnp.zeros(3), jnp.ones(3))
        assert (state == 1).all() and (metrics == 0).all()
    profiled.close()
    return ran


@pytest.mark.smoke
def test_a_trace_holds_its_steps_and_no_others(tmp_path, capfd):
    assert run(tmp_path, "3:5", stop=6) == [1, 2, 3, 4, 5, 6]
    assert traced_steps(tmp_path / "profile") == [3, 4]
    output = capfd.readouterr().out
    assert str(tmp_path / "profile") in output and "ui.perfetto.dev" in output


def test_a_run_that_stops_early_keeps_its_traced_steps_and_one_that_starts_later_traces_none(tmp_path):
    run(tmp_path / "stopped", "3:9", stop=5)
    assert traced_steps(tmp_path / "stopped" / "profile") == [3, 4, 5]
    run(tmp_path / "past", "3:5", stop=7, done=4)
    assert not (tmp_path / "past" / "profile").exists()


@pytest.mark.parametrize("steps", ["3", "3:", "5:3", "0:3", "a:b", "3:3"])
def test_a_value_that_is_no_span_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match="FIRST:END"):
        override(experiment(), [f"profile.steps={steps}"])
