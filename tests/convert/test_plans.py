"""At the sizes of the published models: every name, shape and file, without a single weight."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens_at import on_goldens

from convert.sources import names_of, vq_row, vq_sizes
from convert.table import ROWS, Row, shape_of, sizes_of
from convert.torch_files import File, plan_hugging_face, plan_meta
from convert.vqvae import encoder_shapes
from lumina_jax.config import ModelConfig, VQConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.train.checkpoint import flatten

BIG = ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True)
MODELS = {"7B": ModelConfig(), "34B": BIG}
META = {"7B": "7b", "34B": "30b_shard"}
GIGABYTES = {"7B": 14.03, "34B": 68.58}
KEYS = {"7B": 548, "34B": 756}


@dataclass(frozen=True)
class Outline:
    """A checkpoint that says what it holds, and holds nothing."""

    cfg: ModelConfig
    rows: tuple[Row, ...] = ROWS
    vq: VQConfig | None = None

    @cached_property
    def sizes(self) -> dict[str, dict[str, int]]:
        return {row.path: sizes_of(self.cfg, row) for row in ROWS} | vq_sizes(
            encoder_shapes(self.vq) if self.vq else {}
        )

    @cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        return {row.path: np.dtype(jnp.bfloat16) for row in self.rows}


def with_encoder(cfg: ModelConfig) -> Outline:
    vq = VQConfig()
    return Outline(cfg, (*ROWS, *(vq_row(name, len(shape)) for name, shape in encoder_shapes(vq).items())), vq)


def shapes_of(files: list[File]) -> dict[str, tuple[int, ...]]:
    """Name -> shape; no name may stand twice."""
    entries = [entry.tensor for file in files for entry in file.entries]
    assert len({tensor.name for tensor in entries}) == len(entries)
    return {tensor.name: tensor.shape for tensor in entries}


def nbytes(file: File) -> int:
    return sum(entry.tensor.nbytes for entry in file.entries)


def every_layer(file: Path, model: str, layers: int) -> dict[str, tuple[int, ...]]:
    """The recorded shapes, those of layer 0 repeated for all."""
    recorded = json.loads(file.read_text())[model]
    named = {name.replace("layers.0.", "layers.{L}."): tuple(shape) for name, shape in recorded.items()}
    return {written: shape for name, shape in named.items() for written in names_of(name, layers)}


@pytest.mark.smoke
@on_goldens("lm")
@pytest.mark.parametrize("model", MODELS)
def test_lumina_s_names_and_shapes(model, goldens):
    cfg = MODELS[model]
    outline = with_encoder(cfg)
    found = shapes_of(plan_hugging_face(outline, outline.dtypes, "lumina", None))
    assert found == every_layer(goldens / "lm/real_size_keys_lumina_layer0.json", model, cfg.layers)
    assert len(found) == KEYS[model]


@pytest.mark.parametrize("model", MODELS)
def test_transformers_has_the_same_but_a_qk_norm_row_for_each_head(model):
    cfg, outline = MODELS[model], Outline(MODELS[model])
    lumina, hf = (shapes_of(plan_hugging_face(outline, outline.dtypes, layout, None)) for layout in ("lumina", "hf"))
    heads = {"q_norm": cfg.heads, "k_norm": cfg.kv_heads}
    for name, shape in lumina.items():
        of_norm = [count for norm, count in heads.items() if norm in name]
        assert hf.pop(name) == ((of_norm[0], cfg.head_dim) if of_norm else shape)
    assert not hf


@on_goldens("meta")
@pytest.mark.parametrize(("model", "shards"), [("7B", 1), ("34B", 4)])
def test_meta_s_names_and_shapes(model, shards, goldens):
    outline = Outline(MODELS[model])
    files = plan_meta(outline, outline.dtypes, None)
    expected = every_layer(goldens / "meta/real_size_keys_layer0.json", META[model], outline.cfg.layers)
    assert [shapes_of([file]) for file in files] == [expected] * shards


@pytest.mark.parametrize("model", MODELS)
def test_ours_are_the_leaves_of_the_model(model):
    cfg = MODELS[model]
    leaves = flatten(jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0))))
    for row in ROWS:
        shape = shape_of(row.ours, sizes_of(cfg, row))
        assert leaves.pop(row.path).shape == ((cfg.layers, *shape) if row.per_layer else shape)
    assert not leaves


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["lumina", "meta"])
def test_files_share_the_bytes(model, layout):
    outline = Outline(MODELS[model])
    for shards in (None, 4 if model == "34B" else 1, 8):
        if layout == "meta":
            files = plan_meta(outline, outline.dtypes, shards)
        else:
            files = plan_hugging_face(outline, outline.dtypes, layout, shards)
        sizes = [nbytes(file) for file in files]
        weights = [entry.tensor.nbytes for file in files for entry in file.entries]
        # Norms stand in each of Meta's files.
        assert sum(sizes) / 1e9 == pytest.approx(GIGABYTES[model], rel=1e-3)
        assert len(files) == (shards or (math.ceil(sum(sizes) / 5e9) if layout == "lumina" else outline.cfg.qk_groups))
        assert max(sizes) - min(sizes) <= 2 * max(weights) * (layout == "lumina")


@pytest.mark.parametrize("layout", ["lumina", "hf"])
def test_any_number_of_files_from_one_to_one_per_weight(layout):
    outline = Outline(ModelConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp=96))
    whole = plan_hugging_face(outline, outline.dtypes, layout, 1)[0].entries
    for shards in range(1, len(whole) + 1):
        files = plan_hugging_face(outline, outline.dtypes, layout, shards)
        assert [entry.tensor for file in files for entry in file.entries] == [entry.tensor for entry in whole]
        assert len(files) == shards and all(file.entries for file in files)
    for shards in (0, len(whole) + 1):
        with pytest.raises(ValueError, match=f"--shards {shards}; choose 1 to {len(whole)}"):
            plan_hugging_face(outline, outline.dtypes, layout, shards)


@pytest.mark.parametrize(("shards", "said"), [(1, "a multiple of 4"), (6, "a multiple of 4"), (16, "kv_heads=8")])
def test_numbers_of_meta_files_that_cannot_be(shards, said):
    outline = Outline(BIG)
    with pytest.raises(ValueError, match=f"--shards {shards}.*{said}"):
        plan_meta(outline, outline.dtypes, shards)
