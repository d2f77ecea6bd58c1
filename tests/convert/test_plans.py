"""Plans of the published models at full size: every name, shape and file, without any weights."""

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

from convert.sources import layer_names, vq_rows, vq_sizes
from convert.table import ROWS, WeightRow, shape_of, sizes_of
from convert.torch_files import PlannedFile, plan_hugging_face, plan_meta
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
    """A Checkpoint without weights."""

    cfg: ModelConfig
    rows: tuple[WeightRow, ...] = ROWS
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
    return Outline(cfg, (*ROWS, *vq_rows(encoder_shapes(vq))), vq)


def shapes_of(files: list[PlannedFile]) -> dict[str, tuple[int, ...]]:
    """Name -> shape; no name may occur twice."""
    specs = [tensor.spec for file in files for tensor in file.tensors]
    assert len({spec.name for spec in specs}) == len(specs)
    return {spec.name: spec.shape for spec in specs}


def every_layer(file: Path, model: str, layers: int) -> dict[str, tuple[int, ...]]:
    """The recorded shapes, those of layer 0 repeated for all layers."""
    recorded = json.loads(file.read_text())[model]
    named = {name.replace("layers.0.", "layers.{L}."): tuple(shape) for name, shape in recorded.items()}
    return {layer_name: shape for name, shape in named.items() for layer_name in layer_names(name, layers)}


@pytest.mark.smoke
@on_goldens("lm")
@pytest.mark.parametrize("model", MODELS)
def test_lumina_s_names_and_shapes(model, goldens):
    cfg = MODELS[model]
    outline = with_encoder(cfg)
    shapes = shapes_of(plan_hugging_face(outline, outline.dtypes, "lumina", None))
    assert shapes == every_layer(goldens / "lm/real_size_keys_lumina_layer0.json", model, cfg.layers)
    assert len(shapes) == KEYS[model]


@pytest.mark.parametrize("model", MODELS)
def test_transformers_shapes_differ_only_in_a_qk_norm_row_per_head(model):
    cfg, outline = MODELS[model], Outline(MODELS[model])
    lumina, hf = (shapes_of(plan_hugging_face(outline, outline.dtypes, layout, None)) for layout in ("lumina", "hf"))
    heads = {"q_norm": cfg.heads, "k_norm": cfg.kv_heads}
    for name, shape in lumina.items():
        counts = [count for norm, count in heads.items() if norm in name]
        assert hf.pop(name) == ((counts[0], cfg.head_dim) if counts else shape)
    assert not hf


@on_goldens("meta")
@pytest.mark.parametrize(("model", "shards"), [("7B", 1), ("34B", 4)])
def test_meta_s_names_and_shapes(model, shards, goldens):
    outline = Outline(MODELS[model])
    files = plan_meta(outline, outline.dtypes, None)
    expected = every_layer(goldens / "meta/real_size_keys_layer0.json", META[model], outline.cfg.layers)
    assert [shapes_of([file]) for file in files] == [expected] * shards


@pytest.mark.parametrize("model", MODELS)
def test_the_table_has_the_paths_and_shapes_of_the_model(model):
    cfg = MODELS[model]
    leaves = flatten(jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0))))
    for row in ROWS:
        shape = shape_of(row.axes, sizes_of(cfg, row))
        assert leaves.pop(row.path).shape == ((cfg.layers, *shape) if row.per_layer else shape)
    assert not leaves


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["lumina", "meta"])
def test_files_are_about_equally_large(model, layout):
    outline = Outline(MODELS[model])
    for shards in (None, 4 if model == "34B" else 1, 8):
        if layout == "meta":
            files = plan_meta(outline, outline.dtypes, shards)
        else:
            files = plan_hugging_face(outline, outline.dtypes, layout, shards)
        sizes = [file.nbytes for file in files]
        weights = [tensor.spec.nbytes for file in files for tensor in file.tensors]
        # Each of Meta's files holds the norms.
        assert sum(sizes) / 1e9 == pytest.approx(GIGABYTES[model], rel=1e-3)
        assert len(files) == (shards or (math.ceil(sum(sizes) / 5e9) if layout == "lumina" else outline.cfg.qk_groups))
        assert max(sizes) - min(sizes) <= 2 * max(weights) * (layout == "lumina")


@pytest.mark.parametrize("layout", ["lumina", "hf"])
def test_one_file_to_one_file_per_weight(layout):
    outline = Outline(ModelConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp=96))
    tensors = plan_hugging_face(outline, outline.dtypes, layout, 1)[0].tensors
    for shards in range(1, len(tensors) + 1):
        files = plan_hugging_face(outline, outline.dtypes, layout, shards)
        assert [tensor.spec for file in files for tensor in file.tensors] == [tensor.spec for tensor in tensors]
        assert len(files) == shards and all(file.tensors for file in files)
    for shards in (0, len(tensors) + 1):
        with pytest.raises(ValueError, match=f"--shards {shards}; choose 1 to {len(tensors)}"):
            plan_hugging_face(outline, outline.dtypes, layout, shards)


@pytest.mark.parametrize(("shards", "words"), [(1, "a multiple of 4"), (6, "a multiple of 4"), (16, "kv_heads=8")])
def test_impossible_numbers_of_meta_files(shards, words):
    outline = Outline(BIG)
    with pytest.raises(ValueError, match=f"--shards {shards}.*{words}"):
        plan_meta(outline, outline.dtypes, shards)
