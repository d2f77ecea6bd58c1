"""The files that a model needs beside its weights, tokenizer and image tokenizer: found, checked against it, copied along."""

from collections.abc import Iterable
from dataclasses import dataclass

from convert.errors import read_errors, write_errors
from convert.vqvae import PATCHVQ_NAME, VQGAN_NAME, find_file, load_image_tokenizer, read_config
from lumina_jax.config import Experiment, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.places import Place, below, copy_file, normal, place
from lumina_jax.vocab import FILE_NAMES, FOLDERS, Vocab

NEAR_WEIGHTS = (*FOLDERS, "../../tokenizer")
"""Folders that are searched, relative to the weights; the last is that of Meta's release, whose weights are in models/7b."""
VQ_FILES = (VQGAN_NAME, PATCHVQ_NAME)
HF_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "processor_config.json")
"""Small files that transformers keeps beside tokenizer.json and the weights."""


@dataclass(frozen=True)
class TokenizerFiles:
    """Paths of the tokenizer file and of the image tokenizer (vqgan.ckpt or a PatchVQ .npz); None where there is none."""

    tokenizer: Place | None = None
    vq: Place | None = None

    def vocab(self) -> Vocab | None:
        """The tokenizer, loaded."""
        return Vocab.load(self.tokenizer) if self.tokenizer else None


def find(folder: Place, experiment: Experiment | None = None, tokenizer: str = "", vq: str = "") -> TokenizerFiles:
    """The files for the weights in ``folder``: those at the paths ``tokenizer`` and ``vq``, else those that the experiment
    names, else those near the weights.

    Raises MissingFileError for a path that is given or named but absent; files near the weights may be absent.
    """
    folders = [below(folder, name) for name in NEAR_WEIGHTS]
    if experiment:
        tokenizer, vq = tokenizer or experiment.data.tokenizer, vq or experiment.vq.path
    with read_errors(folder):
        return TokenizerFiles(
            find_file(place(tokenizer), *FILE_NAMES) if tokenizer else _first(folders, FILE_NAMES),
            find_file(place(vq), *VQ_FILES) if vq else _first(folders, VQ_FILES),
        )


def check(files: TokenizerFiles, cfg: ModelConfig) -> None:
    """Raises InputError when tokenizer, image tokenizer and model do not belong together, or one of the files is damaged."""
    vocab, codes = files.vocab(), vq_codes(files.vq) if files.vq else None
    if vocab:
        vocab.check_fits(cfg.vocab)
    if vocab and codes is not None and codes != len(vocab.code_ids):
        raise InputError(
            f"{files.vq} has {codes} codes but {files.tokenizer} names {len(vocab.code_ids)} image tokens; "
            "they are not of one model: give the right ones with --tokenizer and --vq"
        )


def vq_codes(path: Place) -> int:
    """The number of codes of an image tokenizer. Raises InputError for a damaged file."""
    return load_image_tokenizer(path).codes if path.suffix == ".npz" else read_config(path.with_suffix(".yaml")).codes


def copy(files: TokenizerFiles, folder: Place, layout: str) -> None:
    """Copies the files into ``folder``, to where readers of ``layout`` look for them. Raises StorageError."""
    subfolder = "original_tokenizers" if layout in ("hf", "lumina") else "tokenizer"
    if files.tokenizer:
        name = FILE_NAMES[1] if layout == "meta" else files.tokenizer.name
        beside_weights = layout in ("hf", "lumina") and name == FILE_NAMES[0]
        _copy(files.tokenizer, folder / ("" if beside_weights else subfolder) / name)
        for small in HF_TOKENIZER if beside_weights else ():
            if (files.tokenizer.parent / small).is_file():
                _copy(files.tokenizer.parent / small, folder / small)
    if files.vq and files.vq.suffix == ".npz":
        _copy(files.vq, folder / (subfolder if layout == "meta" else "") / PATCHVQ_NAME)
    elif files.vq:
        for suffix in (".ckpt", ".yaml"):
            _copy(files.vq.with_suffix(suffix), (folder / subfolder / VQGAN_NAME).with_suffix(suffix))


def notes(files: TokenizerFiles, folder: Place, has_encoder: bool = False) -> list[str]:
    """One line for each missing file, saying where to put it; a checkpoint that ``has_encoder`` may lack the image tokenizer."""
    folder = folder.parent.parent if folder.parent.name == "models" else folder  # Meta's release: weights in models/7b
    cure, missing = f"of Meta's Chameleon release into {folder / 'tokenizer'}, or name", []
    if not files.tokenizer:
        missing.append(f"no tokenizer: put text_tokenizer.json {cure} it with --tokenizer")
    if not files.vq and not has_encoder:
        missing.append(f"no image tokenizer: put vqgan.ckpt and vqgan.yaml {cure} them with --vq")
    return missing


def _first(folders: Iterable[Place], names: tuple[str, ...]) -> Place | None:
    candidates = (folder / name for folder in folders for name in names)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    return file and normal(file)


def _copy(source: Place, target: Place) -> None:
    with write_errors(target):
        copy_file(source, target)
