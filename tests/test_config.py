"""Configs: which values may be set, which are refused, and what the error says."""

import json
from dataclasses import replace

import pytest

from lumina_jax.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PodConfig,
    ProfileConfig,
    SampleConfig,
    VQConfig,
    from_dict,
    override,
    to_dict,
)
from lumina_jax.errors import InputError


@pytest.mark.smoke
def test_override_sets_typed_fields_at_every_depth():
    new = override(
        Experiment(),
        ["name=run 2", "model.width=64", "optim.lr=1e-3", "data.buckets=(64, 128,256)", "vq.multipliers=1,2", "seed=7"],
    )
    assert (new.name, new.seed, new.model.width, new.optim.lr) == ("run 2", 7, 64, 1e-3)
    assert new.data.buckets == (64, 128, 256) and new.vq.multipliers == (1, 2) and new.vq.stride == 2
    untouched = replace(new, name="experiment", seed=0, model=ModelConfig(), optim=OptimConfig())
    assert replace(untouched, data=DataConfig(), vq=VQConfig()) == Experiment()


def test_override_reads_booleans_and_an_equals_sign_inside_a_value():
    assert override(ModelConfig(), ["post_norm=true"]).post_norm is True
    assert override(ModelConfig(post_norm=True), ["post_norm=False"]).post_norm is False
    assert override(Experiment(), ["out=a=b"]).out == "a=b"


def test_folders_and_their_weights_can_be_given_on_the_command_line():
    changes = ["data.path=pairs, gs://b/text", "data.weights=(0.7,0.3)", "data.mix_by=tokens", "data.packing=false"]
    data = override(Experiment(), changes).data
    assert data.paths == ("pairs", "gs://b/text") and data.weights == (0.7, 0.3)
    assert data.mix_by == "tokens" and data.packing is False and DataConfig(path="a").paths == ("a",)


def test_one_folder_of_a_mixture_has_no_weights():
    mixture = DataConfig(path="a,b", weights=(0.7, 0.3))
    assert override(mixture, ["path=a"]) == DataConfig(path="a") == override(mixture, ["path=a", "weights=1"])
    with pytest.raises(InputError, match="one for each folder"):
        override(mixture, ["path=a,b,c"])


def test_override_lets_the_last_of_equal_names_win():
    assert override(Experiment(), ["seed=1", "seed=2"]).seed == 2


def test_override_changes_fields_that_are_only_valid_together():
    assert override(Experiment(), ["model.heads=6", "model.kv_heads=3"]).model.heads == 6


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("model.widht=64", ["model.widht", "width"]),
        ("modle.width=64", ["modle", "model"]),
        ("model=64", ["model", "model.x="]),
        ("seed.x=1", ["seed", "x"]),
        ("seed", ["seed", "a.b=value"]),
        ("model.width=big", ["model.width", "'big'", "int"]),
        ("model.width=6.5", ["model.width", "'6.5'", "int"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "float"]),
        ("model.post_norm=1", ["model.post_norm", "'1'", "true or false"]),
        ("data.buckets=64,x", ["data.buckets", "'x'", "int"]),
    ],
)
def test_override_refuses_by_field_value_and_cure(assignment, words):
    with pytest.raises(ValueError) as error:
        override(Experiment(), [assignment])
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_override_refuses_a_value_and_a_field_of_it_in_either_order(order):
    with pytest.raises(ValueError, match=r"optim\.lr"):
        override(Experiment(), ["optim.lr=1", "optim.lr.x=2"][::order])


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (ModelConfig, {"width": 0}, ["model.width", "0", "at least 1"]),
        (ModelConfig, {"heads": 6, "kv_heads": 4}, ["model.heads=6", "model.kv_heads=4", "change"]),
        (ModelConfig, {"qk_groups": 3}, ["model.qk_groups=3", "change"]),
        (ModelConfig, {"head_dim": 5}, ["model.head_dim=5", "even"]),
        (ModelConfig, {"dropout": 1.0}, ["model.dropout=1.0", "[0, 1)"]),
        (VQConfig, {"kind": "jpeg"}, ["vq.kind='jpeg'", "'vqgan'", "'patch'"]),
        (VQConfig, {"codes": 0}, ["vq.codes=0", "at least 1"]),
        (VQConfig, {"base": 48}, ["vq.base=48", "32"]),
        (DataConfig, {"size": 16}, ["data.size=16", "data.patch=32"]),
        (DataConfig, {"patch": 1}, ["data.patch=1", "at least 2"]),
        (DataConfig, {"max_ratio": 0.5}, ["data.max_ratio=0.5", "at least 1"]),
        (DataConfig, {"buckets": (256, 128)}, ["data.buckets=(256, 128)", "rising"]),
        (DataConfig, {"buckets": ()}, ["data.buckets=()", "one or more"]),
        (DataConfig, {"batch": 0}, ["data.batch=0", "at least 1"]),
        (DataConfig, {"batch": 6, "row_multiple": 4}, ["data.row_multiple=4", "data.batch=6", "divisor"]),
        (DataConfig, {"path": "a,b", "weights": (1.0,)}, ["data.weights=(1.0,)", "a,b", "one for each folder"]),
        (DataConfig, {"path": "a,b", "weights": (1.0, 0.0)}, ["data.weights=(1.0, 0.0)", "positive"]),
        (DataConfig, {"mix_by": "bytes"}, ["data.mix_by='bytes'", "'records'", "'tokens'"]),
        (DataConfig, {"threads": -1}, ["data.threads=-1", "negative"]),
        (DataConfig, {"drop_context": 1.5}, ["data.drop_context=1.5", "[0, 1]"]),
        (OptimConfig, {"steps": 0}, ["optim.steps=0", "at least 1"]),
        (OptimConfig, {"warmup": -1}, ["optim.warmup=-1", "negative"]),
        (OptimConfig, {"decay": "step"}, ["optim.decay='step'", "'cosine'", "'linear'"]),
        (OptimConfig, {"hold": 2.0}, ["optim.hold=2.0", "[0, 1]"]),
        (OptimConfig, {"lr": 0.0}, ["optim.lr=0.0", "positive"]),
        (OptimConfig, {"clip": 0.0}, ["optim.clip=0.0", "positive"]),
        (OptimConfig, {"muon_lr": -0.1}, ["optim.muon_lr=-0.1", "negative"]),
        (OptimConfig, {"accumulate": 0}, ["optim.accumulate=0", "at least 1"]),
        (MeshConfig, {"replica": -1}, ["mesh.replica=-1", "mesh.fsdp=-1", "only one"]),
        (MeshConfig, {"tensor": 0}, ["mesh.tensor=0", "at least 1", "-1"]),
        (MeshConfig, {"compute": "int8"}, ["mesh.compute='int8'", "'bfloat16'"]),
        (MeshConfig, {"remat": "all"}, ["mesh.remat='all'", "'block'"]),
        (MeshConfig, {"attention": "flash"}, ["mesh.attention='flash'", "'splash'"]),
        (MeshConfig, {"attention": "cudnn", "compute": "float32"}, ["mesh.compute='float32'", "bfloat16"]),
        (MeshConfig, {"dropout_rng": "fast"}, ["mesh.dropout_rng='fast'", "'local'"]),
        (MeshConfig, {"quant": "int4"}, ["mesh.quant='int4'", "'int8'", "'fp8'"]),
        (MeshConfig, {"quant_skip": (1,)}, ["mesh.quant_skip=(1,)", "1,1"]),
        (MeshConfig, {"quant_skip": (1, -1)}, ["mesh.quant_skip=(1, -1)", "1,1"]),
        (MeshConfig, {"loss_chunk": 0}, ["mesh.loss_chunk=0", "at least 1"]),
        (SampleConfig, {"guidance": -1.0}, ["sample.guidance=-1.0", "1 is off"]),
        (SampleConfig, {"temperature": 0.0}, ["sample.temperature=0.0", "top_k"]),
        (SampleConfig, {"image_top_k": 0}, ["sample.image_top_k", "0", "at least 1"]),
        (SampleConfig, {"min_p": 2.0}, ["sample.min_p=2.0", "[0, 1]"]),
        (SampleConfig, {"parallel": "magic"}, ["sample.parallel='magic'", "off, sjd, coupled"]),
        (PodConfig, {"stall_timeout": 0}, ["pod.stall_timeout=0", "at least 1 second"]),
        (ProfileConfig, {"steps": "13:10"}, ["profile.steps='13:10'", "FIRST:END"]),
        (Experiment, {"keep": 0}, ["keep", "0", "at least 1"]),
        (Experiment, {"mesh": MeshConfig(quant="int8", quant_skip=(16, 16))}, ["(16, 16)", "model.layers=32", "none"]),
        (Experiment, {"data": DataConfig(batch=6), "optim": OptimConfig(accumulate=4)}, ["=6", "=4", "multiple"]),
        (
            Experiment,
            {"data": DataConfig(row_multiple=2), "optim": OptimConfig(accumulate=4)},
            ["=2", "=4", "multiple"],
        ),
    ],
)
def test_a_bad_value_is_refused_by_field_value_and_cure(kind, values, words):
    with pytest.raises(ValueError) as error:
        kind(**values)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_config_survives_json():
    config = override(Experiment(), ["data.buckets=64,128", "vq.attn_resolutions=16", "model.post_norm=true"])
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_takes_defaults_and_refuses_unknown_fields():
    assert from_dict(Experiment, {"seed": 3}) == Experiment(seed=3)
    assert from_dict(Experiment, {"pod": {"wait": 7.0}}).pod.join_timeout == 7.0, "a field's name in older checkpoints"
    with pytest.raises(ValueError, match=r"OptimConfig has no field 'learning_rate'.*lr"):
        from_dict(Experiment, {"optim": {"learning_rate": 1.0}})
