"""The batches of a run whose data settings changed on the way: it goes on by the records it has read, not by steps.

When only the batches change (their size, packing, row lengths), the records that the epoch has left are batched anew, so that each
still comes once in it, and the next epochs are whole ones. When the mixture changes (weights, folders), a new epoch with the new
shares begins at once, in which each folder goes on where it was: first with what its round has left. All follows from the
settings and where they changed, so nothing is stored, and any number of processes agrees.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.data.batch_plan import BatchPlan, BatchRecords, Draws, LapOrder, RecordOrder
from lumina_jax.data.length_index import LengthIndex, Ranges
from lumina_jax.history import DataStage
from lumina_jax.progress import waiting

LengthsOf = Callable[[DataStage], Sequence[np.ndarray]]
"""The numbers of tokens of the records, i32[N] for each folder of a stage."""


class Position(NamedTuple):
    """Where a stage is after some batches: ``rest`` is what its ``epoch`` has left; None where it has begun nothing of it."""

    epoch: int
    rest: Draws | None


class DataOrder:
    """The global batch of each number, for a run that had ``stages``, the last of them today's; ``cfg`` and ``seed`` as there.

    ``lengths_of`` reads the lengths of a stage's folders. Raises InputError as :class:`BatchPlan`.
    """

    def __init__(self, stages: Sequence[DataStage], lengths_of: LengthsOf, seed: int):
        self._firsts = np.array([stage.first for stage in stages])
        self._plans: list[StagePlan] = []
        for number, stage in enumerate(stages):
            before = self._plans[-1] if self._plans else None
            done = stage.first - stages[number - 1].first if before else 0
            self._plans.append(StagePlan(stage, lengths_of(stage), seed, before, done))
        self.cfg, self.seed = stages[-1].cfg, seed

    def __call__(self, number: int, host: int = 0, hosts: int = 1) -> BatchRecords:
        """The rows of ``host`` in the global batch ``number``, counted from 0 through all stages; see :class:`BatchPlan`."""
        stage = int(np.searchsorted(self._firsts, number, "right")) - 1
        return self._plans[stage](number - int(self._firsts[stage]), host, hosts)


class StagePlan:
    """The batches of one stage, counted from 0 in it. ``before`` is the stage it follows, of which ``done`` batches were read."""

    def __init__(
        self, stage: DataStage, lengths: Sequence[np.ndarray], seed: int, before: "StagePlan | None", done: int
    ):
        self.stage, cfg = stage, stage.cfg
        self._rest_plan, order, position = None, None, Position(0, None)
        same = before is not None and _names(stage) == _names(before.stage) and cfg.buckets[-1] == before.index.limit
        self.index = index = before.index if same else LengthIndex(lengths, cfg.buckets[-1])
        if before is not None:
            with waiting("planning what the epoch has left"):
                position = before.position(done)
            order = before.order
            if _mixture(stage) != _mixture(before.stage):
                order, position = ContinuedOrder(before, position, stage, LapOrder(index, seed)), Position(0, None)
        self._whole = BatchPlan(lengths, cfg, seed, index, order)
        self._epoch = position.epoch
        if position.rest is not None:
            rest = resized(position.rest, len(self._whole.quota))
            self._rest_plan = BatchPlan(lengths, cfg, seed, index, self._whole.order, rest, position.epoch)
            self._epoch += 1

    @property
    def order(self) -> RecordOrder:
        """Which records the draws of this stage are."""
        return self._whole.order

    @property
    def quota(self) -> np.ndarray:
        """How many records of each kind a whole epoch takes, i64[kinds]."""
        return self._whole.quota

    def __call__(self, number: int, host: int = 0, hosts: int = 1) -> BatchRecords:
        """The rows of ``host`` in batch ``number`` of the stage."""
        rest_steps = self._rest_plan.steps if self._rest_plan else 0
        if number < rest_steps:
            return self._rest_plan(number, host, hosts)
        return self._whole(self._epoch * self._whole.steps + number - rest_steps, host, hosts)

    def position(self, done: int) -> Position:
        """Where the stage is after ``done`` of its batches."""
        rest_steps = self._rest_plan.steps if self._rest_plan else 0
        if done < rest_steps:
            return Position(*self._rest_plan.left(done))
        step = self._epoch * self._whole.steps + done - rest_steps
        if step % self._whole.steps == 0:
            return Position(step // self._whole.steps, None)
        return Position(*self._whole.left(step))


class ContinuedOrder:
    """The order of ``before`` from ``position`` on, for the folders of ``stage``: those it shares go on, the others begin."""

    def __init__(self, before: StagePlan, position: Position, stage: DataStage, fresh: LapOrder):
        self._before, self._fresh = before.order, fresh
        rest = position.rest or Draws(Ranges.of(np.zeros_like(before.quota)), np.zeros(0, np.int64))
        self._left, self._numbers = rest.kinds, np.append(rest.numbers, 0)  # one more, for draws behind the rest
        self._following = (position.epoch + (position.rest is not None)) * before.quota
        self._folders_before = len(before.stage.cfg.paths)
        self._folder_before = _shared_folders(before.stage, stage)

    def find(self, kind: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`RecordOrder.find`."""
        length, folder = np.divmod(kind, len(self._folder_before))
        old_folder, record = self._folder_before[folder], np.empty_like(draw)
        shared = old_folder >= 0
        old_kind = length[shared] * self._folders_before + old_folder[shared]
        record[shared] = self._before.find(old_kind, self._draw_before(old_kind, draw[shared]))[1]
        record[~shared] = self._fresh.find(kind[~shared], draw[~shared])[1]
        return folder, record

    def _draw_before(self, kind: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Draws i64[n] of kinds as the order before numbers them."""
        left = self._left.sizes[kind]
        index = np.where(draw < left, self._left.starts[kind] + draw, len(self._numbers) - 1)
        return np.where(draw < left, self._numbers[index], self._following[kind] + draw - left)


def resized(rest: Draws, kinds: int) -> Draws:
    """``rest`` for another number of kinds: longer ones, or fewer long ones, of which there is no record."""
    sizes = np.zeros(kinds, np.int64)
    common = min(kinds, len(rest.kinds.sizes))
    sizes[:common] = rest.kinds.sizes[:common]
    return Draws(Ranges.of(sizes), rest.numbers)


def _names(stage: DataStage) -> tuple[str, ...]:
    """What its folders are known by: their fingerprints, else their paths."""
    return stage.folders or stage.cfg.paths


def _mixture(stage: DataStage) -> tuple[object, ...]:
    """What says how much of which folder is taken."""
    return _names(stage), stage.cfg.weights, stage.cfg.weights and stage.cfg.mix_by


def _shared_folders(before: DataStage, stage: DataStage) -> np.ndarray:
    """For each folder of ``stage`` its number in ``before``, i64[F]; -1 where it was not there."""
    free = dict(enumerate(_names(before)))
    numbers = []
    for name in _names(stage):
        number = next((number for number, other in free.items() if other == name), -1)
        free.pop(number, None)
        numbers.append(number)
    return np.array(numbers)
