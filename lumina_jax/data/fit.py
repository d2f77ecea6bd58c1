"""Fits a PatchVQ codebook and a word tokenizer to a source, in seconds, for training without Chameleon's weights."""

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from lumina_jax import layout
from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.shard_maker import crop_size
from lumina_jax.data.sources.record import Reject, Source, read_record
from lumina_jax.data.word_tokenizer import build, save
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures import pixels
from lumina_jax.places import Place, place
from lumina_jax.progress import ProgressDisplay, waiting
from lumina_jax.storage import atomic_write_text, remove_strays
from lumina_jax.vocab import FILE_NAMES

MAX_RECORDS = 20_000
REPORT_PICTURES = 64
RECORD = ".fit.json"
"""Suffix of the file beside a fitted one that says what it was fitted to."""


def claim_fit(vq: VQConfig, data: DataConfig, fitted_to: dict[str, object]) -> bool:
    """Whether ``vq.path`` and the tokenizer in ``data.tokenizer`` are still to be fitted to what ``fitted_to`` (JSON values) names.

    Writes ``fitted_to`` beside both files, so that the same fit is found again, or finished after a kill. Raises ExistingFileError
    for a file that is there and was fitted to something else: the models trained with it need it as it is.
    """
    files, records = _files(vq, data)
    for file in (file for file in files if file.exists()):
        if not records[file].is_file() or json.loads(records[file].read_text(encoding="utf-8")) != fitted_to:
            raise ExistingFileError(
                f"{file} exists already and was fitted to something else, which what was trained with it needs; leave out --fit to "
                "use it as it is, or give this fit its own vq.path=FILE.npz and data.tokenizer=FOLDER"
            )
    for record in records.values():
        atomic_write_text(record, json.dumps(fitted_to))
    return not all(file.exists() for file in files)


def _files(vq: VQConfig, data: DataConfig) -> tuple[tuple[Place, Place], dict[Place, Place]]:
    """The two files that are fitted, and the records beside them."""
    files = (place(vq.path), place(data.tokenizer) / FILE_NAMES[0])
    return files, {file: file.with_name(file.name + RECORD) for file in files}


def drop_unfinished(vq: VQConfig, data: DataConfig) -> None:
    """Removes what killed processes began of the fitted files, which are there: another that fits the same needs no more."""
    for file, record in _files(vq, data)[1].items():
        remove_strays(file.parent, {file.name, record.name}.__contains__)


def fit(
    source: Source, vq: VQConfig, data: DataConfig, seed: int = 0, sizes: Sequence[tuple[int, int]] | None = None
) -> dict[str, float]:
    """Writes a PatchVQ of at most ``vq.codes`` codes to ``vq.path`` and a tokenizer.json into the folder ``data.tokenizer``.

    Reads up to MAX_RECORDS records spread evenly over ``source``: their texts, and their pictures cropped as pretokenize crops
    them, to ``sizes`` (default: those of ``data``). Returns PatchVQ.report on the first REPORT_PICTURES pictures.
    """
    sizes = sizes or layout.crop_sizes(data.size, data.patch, data.max_ratio)
    indices = np.unique(np.linspace(0, len(source) - 1, MAX_RECORDS).astype(int))
    texts: list[str] = []
    rejects: list[str] = []

    def read(index: int) -> tuple[list[str], list[np.ndarray]]:
        record = source[index]
        words = [message for turn in record.conversation([sizes[0]]) for message in turn if message]
        rngs = (np.random.default_rng([seed, index, number]) for number in itertools.count())
        pairs = zip(record.images, rngs, strict=False)
        return words, [
            np.asarray(pixels.whiten(pixels.random_crop(image, crop_size(image.size, sizes), rng)))
            for image, rng in pairs
        ]

    def crops(progress: ProgressDisplay) -> Iterator[np.ndarray]:
        for index in indices:
            content = read_record(read, int(index))
            progress.advance(1)
            if isinstance(content, Reject):  # pretokenize lists it among the rejects
                rejects.append(f"record {index}: {content.reason}")
                continue
            texts.extend(content[0])
            yield from content[1]

    with ProgressDisplay("fit", len(indices)) as progress:
        pictures = crops(progress)
        first = next(pictures, None)
        if first is None:
            raise InputError(_no_pictures(len(indices), rejects))
        codebook = PatchVQ.fit(itertools.chain([first], pictures), vq.codes, seed=seed)
    codebook.save(vq.path)
    units = max(max(size) for size in sizes) // data.patch
    save(build(codebook.codes, texts, size_units=units), data.tokenizer)
    with waiting("measuring the codebook"):
        return codebook.report(
            list(itertools.islice(crops(ProgressDisplay("measure", len(indices), show=False)), REPORT_PICTURES))
        )


def _no_pictures(records: int, rejects: Sequence[str]) -> str:
    """A message on ``records`` without a picture to fit to, of which ``rejects`` says why they cannot be used."""
    why = f"{len(rejects)} of them cannot be used, such as {rejects[0]}" if rejects else "they hold words alone"
    cure = "mend the source (run.py data export lists what is wrong with each record)" if rejects else "leave out --fit"
    return f"--fit found no picture in {records} records: {why}; {cure}"
