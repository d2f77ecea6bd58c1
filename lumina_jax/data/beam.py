"""Pretokenizing on many machines as an Apache Beam pipeline. An element is a shard, so the output has the same bytes."""

from collections.abc import Callable, Sequence

from lumina_jax.data.encode import BatchEncoder
from lumina_jax.data.pretokenize import (
    SHARD_RECORDS,
    begin,
    finish,
    print_rejects,
    shards_to_make,
    stage_settings,
)
from lumina_jax.data.shard_maker import PretokenizeStage, ShardMaker
from lumina_jax.data.shards import Manifest, Settings
from lumina_jax.data.sources import Source
from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.extras import install
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.progress import ProgressDisplay
from lumina_jax.vocab import Vocab

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared
except ImportError as error:
    raise MissingPackageError(
        f"{error}; a runner needs Apache Beam: {install('beam')}, or as lumina_jax/data/PRETOKENIZE.md says"
    ) from error

Inputs = tuple[Source, ImageTokenizer, Vocab]


def pretokenize_with_beam(
    open_inputs: Callable[[], Inputs],
    stages: Sequence[PretokenizeStage],
    seed: int,
    options: Sequence[str],
    shard_records: int = SHARD_RECORDS,
    batch: int = 64,
    name: str = "",
    threads: int = 2,
    **reading: object,
) -> list[Manifest]:
    """pretokenize.pretokenize_stages on the runner of ``options``, Beam's own (--runner=DirectRunner, ...).

    ``open_inputs`` opens source, VQ model and tokenizer, in this process and once in every worker process; it and the stages'
    folders must mean the same everywhere. ``threads`` and ``reading`` are arguments of ShardMaker. Complete shards are kept. Waits
    for the pipeline and returns the manifests. Raises what pretokenize_stages raises, before anything is started.
    """
    settings = stage_settings(*open_inputs(), stages, seed, shard_records, name)
    folders = begin(stages, settings)
    todo = shards_to_make(folders, settings, set(range(settings[0].shards)))
    if not todo:
        return finish(stages)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        records = (
            pipeline
            | "shards" >> beam.Create(list(todo.items()))
            | "spread" >> beam.Reshuffle()
            | "make" >> beam.ParDo(_MakeShard(open_inputs, stages, settings, batch, dict(threads=threads, **reading)))
        )
        # A sum over all shards waits for all of them.
        records | "all" >> beam.CombineGlobally(sum) | "finish" >> beam.Map(_finish, tuple(stages))
    manifests = finish(stages)
    print_rejects(folders, manifests)
    return manifests


def _finish(_: int, stages: Sequence[PretokenizeStage]) -> None:
    finish(stages)


class _MakeShard(beam.DoFn):
    """(shard, its stages) -> its number of records, once its files are written. Repeated after a failure, they are the same."""

    def __init__(
        self,
        open_inputs: Callable[[], Inputs],
        stages: Sequence[PretokenizeStage],
        settings: Sequence[Settings],
        batch: int,
        reading: dict[str, object],
    ):
        self._open_inputs, self._stages, self._settings = open_inputs, tuple(stages), tuple(settings)
        self._batch, self._reading = batch, reading
        self._shared = Shared()  # one VQ model for all threads of a worker process

    def setup(self) -> None:
        self._maker = self._shared.acquire(self._open)

    def process(self, element: tuple[int, tuple[int, ...]]):
        shard, stages = element
        records = len(self._settings[0].span(shard))
        with ProgressDisplay(f"shard {shard}", records, show=False) as meter:
            self._maker.make({shard: stages}, meter)
        beam.metrics.Metrics.counter("pretokenize", "records").inc(records)
        yield records

    def _open(self) -> ShardMaker:
        source, vq, vocab = self._open_inputs()
        first = self._settings[0]
        local = stage_settings(source, vq, vocab, self._stages, first.seed, first.shard_records, first.name)
        for launched, opened in zip(self._settings, local, strict=True):
            if differences := opened.differences(launched):
                raise InputError(f"this worker has {', '.join(differences)}; give all workers the same files")
        return ShardMaker(
            source, vocab, BatchEncoder.on_devices(vq, self._batch), self._stages, self._settings, **self._reading
        )
