"""Where the golden vectors are: numbers recorded from the original PyTorch code, to compare lumina_jax's with.

tests/goldens holds the smallest set that covers every group, so that the tests run in a bare clone; the complete collection is
tested as well where a folder ``shared/goldens`` exists beside the checkout. tests/goldens/README.md describes the files.
"""

import atexit
import functools
import importlib.util
import json
import lzma
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

CARRIED = Path(__file__).resolve().parent / "goldens"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "goldens"
GROUPS = ("tokenizer", "crop", "vq", "packing", "lm", "meta", "sampling")
NEEDS = {"packing": ("tokenizer", "vq")}
SMALL_VQ_EMBEDDING_SCALE = 0.6


def golden_roots(group: str) -> list[Path]:
    """The folders that contain a complete folder ``group``; the one from the repository is first."""
    if group not in GROUPS:
        raise ValueError(f"no golden group {group!r}; choose one of {', '.join(GROUPS)}")
    groups = (group, *NEEDS.get(group, ()))
    for name in groups:
        _unpack(name)
    return [root for root in (_unpacked(), BESIDE) if all((root / name).is_dir() for name in groups)]


def on_goldens(group: str) -> pytest.MarkDecorator:
    """Runs a test once for each of :func:`golden_roots`, passed as its parameter ``goldens``."""
    roots = golden_roots(group)
    return pytest.mark.parametrize("goldens", roots, ids=["carried" if r != BESIDE else "beside" for r in roots])


@functools.cache
def _unpacked() -> Path:
    """A temporary folder for the repository's vectors, removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="lumina-goldens-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _unpack(group: str) -> None:
    """Copies a group from the repository, decompresses x.xz to x, and draws the weights of which it holds only the seed."""
    for source in sorted(path for path in (CARRIED / group).rglob("*") if path.is_file()):
        target = _unpacked() / source.relative_to(CARRIED)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
        else:
            shutil.copyfile(source, target)
    small = _unpacked() / "vq" / "small"
    # Without torch nothing can read the weights either; the rest of the group is still useful.
    if group == "vq" and not (small / "vqgan.ckpt").is_file() and importlib.util.find_spec("torch"):
        _draw_vqgan(small)


def _draw_vqgan(folder: Path) -> None:
    """Writes vqgan.ckpt from the seed in cases.json; the goldens were recorded from exactly these weights."""
    import torch

    shapes = json.loads((folder / "state_dict_shapes.json").read_text())
    seed = json.loads((folder / "cases.json").read_text())["seed"]
    weights = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        normal = np.random.default_rng([seed, index]).standard_normal(shape)
        if name == "quantize.embedding.weight":
            normal *= SMALL_VQ_EMBEDDING_SCALE
        elif len(shape) == 4:
            normal /= math.sqrt(math.prod(shape[1:]))
        else:
            normal = 1 + 0.1 * normal if name.endswith(".weight") else 0.05 * normal
        weights[name] = torch.from_numpy(normal.astype(np.float32))
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")
