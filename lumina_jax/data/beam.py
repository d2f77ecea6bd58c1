"""Pretokenizing as an Apache Beam pipeline, past one machine: an element is a shard, so the output is that of any other way."""

from collections.abc import Callable, Sequence

from lumina_jax.data.encode import Encoder
from lumina_jax.data.pretokenize import SHARD_RECORDS, begin, finish, shards_to_make, stage_settings
from lumina_jax.data.shard_maker import Maker, Stage
from lumina_jax.data.shards import Manifest, Settings
from lumina_jax.data.sources import Source
from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.progress import Meter
from lumina_jax.vocab import Vocab

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared
except ImportError as error:
    raise MissingPackageError(
        f"{error}; a runner needs Apache Beam: install it as lumina_jax/data/PRETOKENIZE.md says"
    ) from error

Parts = tuple[Source, ImageTokenizer, Vocab]


def pretokenize_with_beam(
    open_parts: Callable[[], Parts],
    stages: Sequence[Stage],
    seed: int,
    options: Sequence[str],
    shard_records: int = SHARD_RECORDS,
    batch: int = 64,
    threads: int = 2,
    name: str = "",
) -> list[Manifest]:
    """pretokenize.pretokenize_stages on the runner that ``options`` name (--runner=DirectRunner, ... as Beam takes them).

    ``open_parts`` opens source, VQ model and tokenizer, here and once in every worker process; it and the stages' folders
    must mean the same everywhere. Shards that are whole are left as they are. Waits for the end and returns the manifests.
    Raises what pretokenize_stages raises, before anything is started.
    """
    settings = stage_settings(*open_parts(), stages, seed, shard_records, name)
    folders = begin(stages, settings)
    todo = shards_to_make(folders, settings, set(range(settings[0].shards)))
    if not todo:
        return finish(stages)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        made = (
            pipeline
            | "shards" >> beam.Create(list(todo.items()))
            | "spread" >> beam.Reshuffle()
            | "make" >> beam.ParDo(_MakeShard(open_parts, stages, settings, batch, threads))
        )
        # A sum over all shards waits for all of them.
        made | "all" >> beam.CombineGlobally(sum) | "finish" >> beam.Map(_finish, tuple(stages))
    return finish(stages)


def _finish(_: int, stages: Sequence[Stage]) -> None:
    finish(stages)


class _MakeShard(beam.DoFn):
    """(shard, its stages) -> its records, once its files are written; made again after a failure, they are the same."""

    def __init__(
        self,
        open_parts: Callable[[], Parts],
        stages: Sequence[Stage],
        settings: Sequence[Settings],
        batch: int,
        threads: int,
    ):
        self._open_parts, self._stages, self._settings = open_parts, tuple(stages), tuple(settings)
        self._batch, self._threads = batch, threads
        self._shared = Shared()  # one VQ model for all threads of a worker process

    def setup(self) -> None:
        self._maker = self._shared.acquire(self._open)

    def process(self, element: tuple[int, tuple[int, ...]]):
        shard, stages = element
        records = len(self._settings[0].span(shard))
        with Meter(f"shard {shard}", records, shown=False) as meter:
            self._maker.make({shard: stages}, meter)
        beam.metrics.Metrics.counter("pretokenize", "records").inc(records)
        yield records

    def _open(self) -> Maker:
        source, vq, vocab = self._open_parts()
        first = self._settings[0]
        here = stage_settings(source, vq, vocab, self._stages, first.seed, first.shard_records, first.name)
        for wanted, found in zip(self._settings, here, strict=True):
            if differences := found.differences(wanted):
                raise InputError(f"this worker has {', '.join(differences)}; give all the same files")
        return Maker(source, vocab, Encoder.on_devices(vq, self._batch), self._stages, self._settings, self._threads)
