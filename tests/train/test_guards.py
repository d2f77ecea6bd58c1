"""What guards a run: steps that are not finite, spikes, and going back past them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_parts import assert_equal, batch, batches, experiment, spoiled, without

import lumina_jax.train.loop as loop
from lumina_jax.batch import Batch
from lumina_jax.config import Experiment, GuardConfig
from lumina_jax.errors import NotFiniteError
from lumina_jax.history import BatchSpan, changed_now
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.guards import LEAST_STEPS, BadStepError, GoBackError, Guards
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics
from lumina_jax.train.run_log import RunLog, order_of, read_history
from lumina_jax.train.step import init_state, keep_unless, make_step

NAN = float("nan")


def numbers(xent: float = 2.0, grad_norm: float = 1.0) -> dict[str, float]:
    return {"loss": xent, "xent": xent, "grad_norm": grad_norm}


def noisy(count: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    return [numbers(2 + 0.1 * rng.standard_normal(), 1 + 0.1 * rng.standard_normal()) for _ in range(count)]


def judged(cfg: GuardConfig, steps: list[dict[str, float]]) -> list[str]:
    guards = Guards(cfg, "run")
    return [guards.judge(number, values) for number, values in enumerate(steps, 1)]


@pytest.mark.smoke
def test_ordinary_noise_is_no_spike_and_a_jump_is_one_with_its_deviations():
    assert not any(judged(GuardConfig(), noisy(300)))
    *_, remark = judged(GuardConfig(), [*noisy(100), numbers(4.0)])
    assert "a spike: xent 4, " in remark and "standard deviations" in remark and "grad_norm" not in remark
    *_, remark = judged(GuardConfig(), [*noisy(100), numbers(grad_norm=50.0)])
    assert "grad_norm 50" in remark
    assert not any(judged(GuardConfig(spike_z=0), [*noisy(100), numbers(1e9)]))


@pytest.mark.smoke
def test_the_first_steps_are_no_spikes_and_a_spike_hides_no_second_one():
    falling = [numbers(10 * 0.9**step) for step in range(LEAST_STEPS)]
    assert not any(judged(GuardConfig(), falling))
    remarks = judged(GuardConfig(), [*noisy(100), numbers(9.0), *noisy(3), numbers(9.0)])
    assert [bool(remark) for remark in remarks[100:]] == [True, False, False, False, True]


@pytest.mark.smoke
def test_a_new_level_is_learned():
    remarks = judged(GuardConfig(spike_window=20), [*noisy(50), *[numbers(9.0)] * 200])
    assert remarks[50] and not any(remarks[100:])


@pytest.mark.smoke
def test_a_spike_may_have_to_last():
    cfg = GuardConfig(spike_steps=3, on_spike="back")
    assert not any(judged(cfg, [*noisy(50), numbers(9.0), numbers(9.0), numbers(2.0), numbers(9.0)]))
    with pytest.raises(GoBackError) as back:
        judged(cfg, [*noisy(50), *[numbers(9.0)] * 3])
    assert back.value.step == 53


@pytest.mark.smoke
@pytest.mark.parametrize("bad", [numbers(NAN), numbers(grad_norm=NAN), numbers(float("inf"))])
def test_steps_that_are_not_finite_stop_skip_or_go_back(bad):
    with pytest.raises(BadStepError, match=r"run: the loss of step 2 .*guard\.nonfinite=skip"):
        judged(GuardConfig(), [numbers(), bad])
    skip = GuardConfig(nonfinite="skip", max_skipped=2)
    assert "2 of at most 2" in judged(skip, [numbers(), bad, bad, numbers(), bad, bad])[-1]
    with pytest.raises(BadStepError, match=r"step 4 .*as were 2 before it"):
        judged(skip, [numbers(), bad, bad, bad])
    with pytest.raises(GoBackError):
        judged(GuardConfig(nonfinite="back"), [bad])


def test_a_step_that_is_not_finite_leaves_weights_and_moments_but_the_schedule_goes_on():
    cfg = experiment()
    mesh = make_mesh(cfg.mesh)
    state = init_state(cfg, mesh)
    broken = state._replace(model=jax.tree.map(lambda w: w * jnp.inf, state.model))
    before = jax.device_get((broken.model, broken.opt[1][0]))
    after, metrics = make_step(cfg, mesh)(broken, global_batch(batch(cfg, 0), mesh))
    assert not np.isfinite(metrics.loss) and after.step == 1
    assert_equal(jax.device_get((after.model, after.opt[1][0])), before)
    assert after.opt[1][2].count == 1 and after.opt[1][0].count == 0


@pytest.mark.smoke
def test_a_tree_is_kept_unless_all_is_finite():
    new, old = {"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([3.0, 4.0])}
    assert_equal(keep_unless(jnp.array(False), new, old), old)
    assert keep_unless(jnp.array(True), new, old)["w"][0] == 1


@pytest.fixture
def poison(monkeypatch) -> Callable[[set[int]], None]:
    """Gives batches by number a gradient norm that is not finite."""

    def poisoned(bad: set[int]) -> None:
        monkeypatch.setattr(loop, "make_step", spoiled(make_step, dict.fromkeys(bad, NAN)))

    return poisoned


@pytest.fixture
def cfg(tmp_path) -> Experiment:
    return replace(experiment(), out=str(tmp_path / "run"))


def guarded(cfg: Experiment, **fields) -> Experiment:
    return replace(cfg, guard=GuardConfig(**fields))


def test_skipped_steps_have_lines_and_events(cfg, poison):
    poison({3})
    train(guarded(cfg, nonfinite="skip"), batches(cfg), show=False)
    lines = read_metrics(cfg.out)
    assert [line["step"] for line in lines if line.get("skipped")] == [4] and len(lines) == 7
    assert "grad_norm" not in lines[3] and "loss" in lines[3]
    assert [(line["event"], line["step"]) for line in read_history(cfg.out)] == [("started", 0), ("skipped", 4)]


def test_the_batch_that_ends_a_run_is_named_and_saved(cfg, poison):
    poison({3})
    asked = []

    def names(span: BatchSpan) -> list[str]:
        asked.append(span)
        return [f"tokens:{number}" for number in range(6)]

    with pytest.raises(
        NotFiniteError, match=r"step 4 .*its batch 3 holds tokens:0, .*tokens:3 and 2 more; it is saved in"
    ):
        train(cfg, batches(cfg), show=False, record_names=names)
    assert [(span.start, span.stop) for span in asked] == [(3, 4)]
    folder = Path(cfg.out) / "bad-batches" / "4"
    with np.load(folder / "rows-0.npz") as rows:
        assert_equal(Batch(*(rows[name] for name in Batch._fields)), batch(cfg, 3))
    assert json.loads((folder / "records.json").read_text())["records"][5] == "tokens:5"


class StoppedError(Exception):
    """Ends a run."""


def stop() -> None:
    raise StoppedError


def test_a_run_goes_back_and_passes_over_the_batches_also_after_a_restart(cfg, poison, tmp_path):
    """Batch 4, that of step 5, is bad: from checkpoint 4 on step 5 takes batch 5, and so on."""
    plain = replace(cfg, out=str(tmp_path / "plain"))
    expected = train(plain, without(cfg, {4}), show=False)
    poison({4})
    back = guarded(cfg, nonfinite="back")
    with pytest.raises(StoppedError):
        train(back, batches(cfg, actions={7: stop}), show=False)
    assert_equal(train(back, batches(cfg), show=False), expected)
    assert read_metrics(cfg.out) == read_metrics(plain.out)
    events = [(line["event"], line["step"], line.get("skipped")) for line in read_history(cfg.out)]
    assert events == [("started", 0, None), ("started", 4, None), ("went back", 4, 1), ("started", 6, None)]


def test_a_kill_between_going_back_and_the_next_save_forgets_no_batch(cfg, poison, tmp_path):
    """The second start meets nothing bad, as one that has just begun to look for spikes, and passes over all the same."""
    plain = replace(cfg, out=str(tmp_path / "plain"))
    expected = train(plain, without(cfg, {4}), show=False)
    poison({4})
    back = guarded(cfg, nonfinite="back")
    times = iter(range(9))
    with pytest.raises(StoppedError):
        train(back, batches(cfg, actions={5: lambda: stop() if next(times) else None}), show=False)
    poison(set())
    assert_equal(train(back, batches(cfg), show=False), expected)
    assert read_metrics(cfg.out) == read_metrics(plain.out)
    assert [line["event"] for line in read_history(cfg.out)] == ["started", "started", "went back", "started"]


def test_batches_of_another_order_are_not_passed_over(cfg):
    """Whoever deletes the checkpoints and begins anew, from another seed or with other tokens, reads all of them."""
    log, change = RunLog(cfg.out), changed_now(4, "step 5: a spike", skipped=2)
    log.add_return(change, order_of(cfg, ("a",)))
    assert RunLog(cfg.out).returns(4, order_of(cfg, ("a",))) == (change,)
    others = (replace(cfg, seed=1), ("a",)), (replace(cfg, data=replace(cfg.data, batch=16)), ("a",)), (cfg, ("b",))
    assert not any(log.returns(4, order_of(*other)) for other in others) and not log.returns(2, order_of(cfg, ("a",)))


def test_two_logs_of_a_run_lose_no_line(cfg):
    first, second = RunLog(cfg.out), RunLog(cfg.out)
    for log, event in ((first, "started"), (second, "skipped"), (first, "went back")):
        log.add(event, 1)
    assert [line["event"] for line in read_history(cfg.out)] == ["started", "skipped", "went back"]


def test_a_run_goes_back_a_few_times_at_most(cfg, poison):
    poison({1, 2, 3})
    with pytest.raises(NotFiniteError, match=r"step 1: .*went back 2 times, as often as guard\.max_backs"):
        train(guarded(cfg, nonfinite="back", max_backs=2), batches(cfg, actions={9: stop}), show=False)
