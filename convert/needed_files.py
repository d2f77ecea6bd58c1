"""Which files of a published repository a model needs: weights in one format, configs, tokenizer and image tokenizer."""

import fnmatch
import posixpath
import re
from collections.abc import Iterable, Sequence

from convert.file_sums import SUMS
from convert.metadata import EXPERIMENT_FILE
from convert.tensor_files import INDEX_SUFFIX, WEIGHT_FILES, listed
from convert.tokenizer_files import HF_TOKENIZER, NEAR_WEIGHTS, VQ_FILES
from convert.vqvae import VQGAN_NAME
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.train.checkpoint import FOLDER
from lumina_jax.train.integrity import COMMITTED
from lumina_jax.vocab import FILE_NAMES

SMALL = ("config.json", "params.json", "consolidate_params.json", "preprocessor_config.json", EXPERIMENT_FILE, SUMS)
"""Settings beside the weights, as far as a repository has them."""
WORDS = ("README.md", "LICENSE*")
"""What says under which licence the weights are."""
META_WEIGHTS = "consolidated*.pth"


def checkpoint_files(names: Sequence[str], base: str, where: str) -> list[str]:
    """Those of the file ``names`` of a repository that the checkpoint in its folder ``base`` ("" for its root) needs.

    Of weights in several formats one is taken: safetensors before .bin, and of a run the newest finished checkpoint. Raises
    MissingFileError that begins with ``where`` when there is no checkpoint or a file of its weights is missing, InputError for
    several models.
    """
    inside = {posixpath.relpath(name, base or "."): name for name in names if not base or name.startswith(f"{base}/")}
    if "config.json" in inside:
        weights = _hugging_face(list(inside), where)
    elif "params.json" in inside or fnmatch.filter(inside, META_WEIGHTS):
        weights = fnmatch.filter(inside, META_WEIGHTS)
        if not weights:
            raise MissingFileError(f"{where} holds a params.json but no {META_WEIGHTS}")
    elif models := sorted({posixpath.dirname(name) for name in fnmatch.filter(inside, "models/*/params.json")}):
        if len(models) > 1:
            choices = ", ".join(f"{where}/{model}" for model in models)
            raise InputError(f"{where} holds several models; name one of {choices}")
        return checkpoint_files(names, posixpath.join(base, models[0]), where)
    else:
        weights = _orbax(list(inside), where)
    small = [name for name in (*SMALL, *HF_TOKENIZER) if name in inside]
    beside = [part for parts in tokenizer_names(names, base) for part in parts]
    words = [name for pattern in WORDS for name in fnmatch.filter(names, pattern)]
    return sorted({*(inside[name] for name in (*weights, *small)), *beside, *words})


def tokenizer_names(names: Iterable[str], base: str) -> tuple[list[str], list[str]]:
    """(the tokenizer's file, the image tokenizer's) near ``base``, a folder or the file itself; empty where there is none."""
    known = frozenset(names)
    folders = [posixpath.normpath(posixpath.join(base, folder)) for folder in NEAR_WEIGHTS]

    def first(kinds: Sequence[str]) -> list[str]:
        paths = [posixpath.normpath(posixpath.join(folder, kind)) for folder in folders for kind in kinds]
        given = [base] * (posixpath.basename(base) in kinds)
        return [path for path in (*given, *paths) if path in known][:1]

    vq = first(VQ_FILES)
    sizes = [posixpath.splitext(path)[0] + ".yaml" for path in vq if posixpath.basename(path) == VQGAN_NAME]
    return first(FILE_NAMES), vq + [path for path in sizes if path in known]


def _hugging_face(names: Sequence[str], where: str) -> list[str]:
    """The weight files of a repository with a config.json: the first of WEIGHT_FILES that is there, whole or in numbered parts."""
    for single in WEIGHT_FILES:
        stem, _, kind = single.partition(".")
        if (index := single + INDEX_SUFFIX) in names:
            parts = [match for name in names if (match := re.fullmatch(rf"{stem}-(\d+)-of-(\d+)\.{kind}", name))]
            count = max((int(part[2]) for part in parts), default=0)
            expected = [f"{stem}-{number:05d}-of-{count:05d}.{kind}" for number in range(1, count + 1)]
            if absent := [name for name in expected if name not in names]:
                raise MissingFileError(
                    f"{where} lacks {listed(absent, 4)} of the {count} files of its weights; give another @REVISION"
                )
            return [index, *(expected or fnmatch.filter(names, f"*.{kind}"))]
        if single in names:
            return [single]
    raise MissingFileError(f"{where} holds a config.json but no weights; looked for {' and '.join(WEIGHT_FILES)}")


def _orbax(names: Sequence[str], where: str) -> list[str]:
    """The files of the newest finished checkpoint of lumina_jax's own layout."""
    if COMMITTED in names:
        return [*names]
    steps = [match for name in names if (match := re.fullmatch(rf"{FOLDER}/(\d+)/{re.escape(COMMITTED)}", name))]
    if not steps:
        raise MissingFileError(
            f"{where} holds no checkpoint: neither config.json (Hugging Face), nor params.json (Meta), nor {FOLDER}/ (lumina_jax); "
            f"its files are {listed(sorted(names), 6) or 'none'}"
        )
    newest = max(steps, key=lambda match: int(match[1]))[1]
    return [name for name in names if name.startswith(f"{FOLDER}/{newest}/")]
