"""A TFDS builder for any source: the image files and the JSON of their conversation.

TFDS finds builders by their package, so this one has its own.
"""

import json
from collections.abc import Iterator

import tensorflow_datasets as tfds

from lumina_jax.data.sources.record import StoredRecord
from lumina_jax.data.sources.tfds_set import IMAGES, RECORD


def to_example(record: StoredRecord) -> dict[str, object]:
    """A record -> ``images``, the bytes of the files, and ``record``, its JSON in Lumina's form without images."""
    if record.caption is not None:
        item = {"caption": record.caption}
    else:
        texts = [(speaker, text) for turn in record.turns for speaker, text in zip(("human", "gpt"), turn, strict=True)]
        item = {"conversations": [{"from": speaker, "value": text} for speaker, text in texts]}
    return {IMAGES: [file.content for file in record.files], RECORD: json.dumps(item, ensure_ascii=False)}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes the (number, record) pairs of ``records`` in order, as the data set ``name`` in ArrayRecord.

    ``description`` tells where they come from.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, records: Iterator[tuple[int, StoredRecord]], description: str, data_dir: str):
        self.name = name
        self._records, self._description = records, description
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {IMAGES: tfds.features.Sequence(tfds.features.Text()), RECORD: tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
        return ((number, to_example(record)) for number, record in self._records)
