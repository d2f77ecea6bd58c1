"""Pictures of one record that have the same size are cropped at the same place."""

from data_parts import CONFIG, SIZES, noise, tiny_vocab, tiny_vq

from lumina_jax import layout
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.data.sources import Record
from lumina_jax.vocab import IMAGE_SYMBOL


class Twins:
    """Records of two equal pictures that have to be cropped: only crops at the same place have the same codes."""

    fingerprint = "twins"

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Record:
        return Record([(IMAGE_SYMBOL, IMAGE_SYMBOL)], [noise((61, 37), index)] * 2)


def test_pictures_of_one_size_are_cropped_at_the_same_place(tmp_path):
    vocab = tiny_vocab()
    pretokenize(Twins(), tiny_vq(), vocab, tmp_path, CONFIG, 0, sizes=SIZES, progress=False)
    for tokens, _ in map(Shards(tmp_path).__getitem__, range(8)):
        first, second = (layout.decode_grid(tokens[image], vocab).tolist() for image in layout.images_in(tokens, vocab))
        assert first == second
