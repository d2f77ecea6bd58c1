"""Every config is a model that can be built: shapes at full size, and a placement on a mesh, without the memory."""

from pathlib import Path

import jax
import pytest
from flax import nnx

import run
from configs import pods
from lumina_jax import layout
from lumina_jax.config import MeshConfig
from lumina_jax.model.params import count
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import flatten
from lumina_jax.train.step import state_shapes

FILES = sorted(path for path in (run.REPOSITORY / "configs").glob("[a-z]*.py") if path.stem != "pods")
CONFIGS = (*map(str, FILES), *(f"{run.REPOSITORY}/configs/pods.py:{name}" for name in pods.experiments))
MATRICES = ("wq", "wk", "wv", "wo", "gate", "up", "down")
MARKERS_AND_PROMPT = 16
"""Tokens a sample has at the least besides its image: begin, the shortest prompt, two ends of turn."""


@pytest.fixture(params=CONFIGS, ids=lambda address: address.rpartition("/")[2])
def experiment(request, monkeypatch):
    monkeypatch.chdir(run.REPOSITORY)
    return run.load_experiment(request.param, [])


def test_the_training_state_has_shapes_and_places(experiment):
    mesh = make_mesh(MeshConfig(replica=1, fsdp=-1, tensor=1))
    shapes = state_shapes(experiment, mesh)
    by_muon = MATRICES if experiment.optim.muon_lr else ()
    one_moment = count([leaf for name, leaf in flatten(shapes.model).items() if name.split("/")[-1] in by_muon])
    assert abs(count(shapes) - (count(shapes.model) * 3 - one_moment)) < 100
    assert (one_moment > 0) == (experiment.name.startswith("toy"))
    largest = max(jax.tree.leaves(shapes.model), key=lambda leaf: leaf.size)
    assert not largest.sharding.is_fully_replicated


def test_every_image_of_the_stage_fits_the_longest_bucket(experiment):
    sizes = layout.crop_sizes(experiment.data.size, experiment.data.patch, experiment.data.max_ratio)
    image = max(layout.grid_tokens(height // 16, width // 16) for width, height in sizes)
    assert image + MARKERS_AND_PROMPT <= experiment.data.buckets[-1] + 1


def test_lumina_stages_follow_the_published_run(experiment):
    """Dropout for 7B alone, warm-up for half a percent of the steps, rows that hold the original's longest samples."""
    if experiment.name.startswith("lumina"):
        assert experiment.model.dropout == (0.0 if "34b" in experiment.name else 0.05)
        assert experiment.optim.warmup * 200 == experiment.optim.steps
        assert experiment.optim.loss_weight == "rows"
        assert experiment.data.buckets[-1] >= 4096
        assert len(experiment.data.paths) == len(experiment.data.weights) >= 3


def test_the_image_tokenizer_has_shapes(experiment):
    if experiment.vq.kind == "vqgan":
        shapes = jax.eval_shape(lambda: VQVAE(experiment.vq, nnx.Rngs(0)))
        assert shapes.stride == 16 and count(shapes) > 60e6
    else:
        assert Path(experiment.vq.path).suffix == ".npz"
