"""What a model needs beside its weights: the tokenizer and the image tokenizer. Found, checked against it, copied along."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from convert.vqvae import read_config
from lumina_jax.config import Experiment, ModelConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.vocab import FILE_NAMES, Vocab

PLACES = (".", "tokenizer", "original_tokenizers", "../../tokenizer")
"""Where the releases keep them, seen from the weights: beside them, or in a folder of their own (Meta: models/7b)."""
VQ_FILES = ("vqgan.ckpt", "vq.npz")
HF_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "processor_config.json")
"""Small files that transformers keeps beside tokenizer.json and the weights."""


@dataclass(frozen=True)
class Companions:
    """Paths of the tokenizer file and of the image tokenizer (vqgan.ckpt or a PatchVQ .npz), where they were found."""

    tokenizer: Path | None
    vq: Path | None

    def vocab(self) -> Vocab | None:
        """The tokenizer, loaded."""
        return Vocab.load(self.tokenizer) if self.tokenizer else None


def find(folder: Path, experiment: Experiment | None = None, tokenizer: str = "", vq: str = "") -> Companions:
    """The companions of the weights in ``folder``; ``tokenizer`` and ``vq`` name others, a run's experiment names its own.

    Raises FileNotFoundError for one that is named but not there; one that nobody names may be absent.
    """
    places = [folder / place for place in PLACES]
    if experiment:
        tokenizer, vq = tokenizer or experiment.data.tokenizer, vq or experiment.vq.path
    return Companions(
        _named(tokenizer, FILE_NAMES) if tokenizer else _first(places, FILE_NAMES),
        _named(vq, VQ_FILES) if vq else _first(places, VQ_FILES),
    )


def check(found: Companions, cfg: ModelConfig) -> None:
    """Raises ValueError when tokenizer, image tokenizer and model do not belong together."""
    vocab = found.vocab()
    if vocab:
        vocab.check_fits(cfg.vocab)
    if vocab and found.vq and (codes := vq_codes(found.vq)) != len(vocab.code_ids):
        raise InputError(
            f"{found.vq} has {codes} codes but {found.tokenizer} names {len(vocab.code_ids)} image tokens; "
            "they are not of one model"
        )


def vq_codes(path: Path) -> int:
    """How many codes an image tokenizer has."""
    return PatchVQ.load(path).codes if path.suffix == ".npz" else read_config(path.with_suffix(".yaml")).codes


def copy(found: Companions, folder: Path, layout: str) -> None:
    """Copies the companions into ``folder``, to where readers of ``layout`` look for them."""
    apart = {"ours": "tokenizer", "meta": "tokenizer", "hf": "original_tokenizers", "lumina": "original_tokenizers"}[
        layout
    ]
    if found.tokenizer:
        name = "text_tokenizer.json" if layout == "meta" else found.tokenizer.name
        beside = layout in ("hf", "lumina") and name == "tokenizer.json"
        _copy(found.tokenizer, folder / ("" if beside else apart) / name)
        for small in HF_TOKENIZER if beside else ():
            if (found.tokenizer.parent / small).is_file():
                _copy(found.tokenizer.parent / small, folder / small)
    if found.vq and found.vq.suffix == ".npz":
        _copy(found.vq, folder / (apart if layout == "meta" else "") / "vq.npz")
    elif found.vq:
        for suffix in (".ckpt", ".yaml"):
            _copy(found.vq.with_suffix(suffix), folder / apart / f"vqgan{suffix}")


def nbytes(found: Companions) -> int:
    """How much copying them takes."""
    return sum(path.stat().st_size for path in (found.tokenizer, found.vq) if path)


def notes(found: Companions, folder: Path) -> list[str]:
    """What is missing, and where to put it."""
    folder = folder.parent.parent if folder.parent.name == "models" else folder  # Meta's release keeps them apart
    missing = []
    if not found.tokenizer:
        missing.append(
            f"no tokenizer: put text_tokenizer.json of Meta's Chameleon release into {folder / 'tokenizer'}, or name it with "
            "--tokenizer"
        )
    if not found.vq:
        missing.append(
            f"no image tokenizer: put vqgan.ckpt and vqgan.yaml of Meta's Chameleon release into {folder / 'tokenizer'}, or "
            "name them with --vq"
        )
    return missing


def _first(places: Iterable[Path], names: tuple[str, ...]) -> Path | None:
    found = next((place / name for place in places for name in names if (place / name).is_file()), None)
    return found and Path(os.path.normpath(found))


def _named(path: str, names: tuple[str, ...]) -> Path:
    named = Path(path)
    found = named if named.is_file() else _first([named / place for place in PLACES[:3]], names)
    if found is None:
        raise MissingFileError(f"{named}: no {' or '.join(names)} there")
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
