"""AdamW and its schedule, against the recorded steps of the original and against PyTorch."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from goldens_at import golden_roots
from safetensors.numpy import load_file
from train_parts import host_state

from convert.chameleon import load_model, save_model
from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import flatten
from lumina_jax.train.optim import optimizer, schedule
from lumina_jax.train.step import make_step

TRAINED = sorted(
    file.parent
    for root in golden_roots("lm")
    for file in (root / "lm").glob("*/train.json")
    if "train_steps" in json.loads(file.read_text())
)


def rates(**changes) -> np.ndarray:
    cfg = OptimConfig(**{**dict(steps=100, lr=1.0, min_lr=0.1, warmup=10), **changes})
    return np.asarray(jax.vmap(schedule(cfg))(jnp.arange(cfg.steps)))


@pytest.mark.smoke
def test_the_warm_up_is_linear_and_may_be_left_out():
    np.testing.assert_allclose(rates()[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert rates(warmup=0)[0] == 1.0


def test_the_cosine_decays_to_min_lr():
    fall = rates()[10:]
    np.testing.assert_allclose(fall, 0.1 + 0.45 * (1 + np.cos(np.pi * np.arange(90) / 90)), rtol=1e-5)


def test_linear_decay_follows_the_plateau():
    rate = rates(decay="linear", hold=0.5)
    np.testing.assert_allclose(rate[9:56], 1.0)
    np.testing.assert_allclose(np.diff(rate[55:]), -0.9 / 45, rtol=1e-3)
    np.testing.assert_allclose(rates(decay="linear", hold=1.0)[9:], 1.0)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_equal_lr_and_min_lr_are_constant_behind_the_warm_up(decay):
    np.testing.assert_allclose(rates(lr=0.3, min_lr=0.3, decay=decay)[9:], 0.3, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    cfg = OptimConfig(lr=1.0, min_lr=1.0, warmup=0, b1=0.0, b2=0.0, eps=1e3, weight_decay=0.0, clip=1.0)
    weights = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = optimizer(cfg).update(
        {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}, optimizer(cfg).init(weights), weights
    )
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6 / 1e3, -0.8 / 1e3], rtol=1e-2)


def test_muon_updates_the_matrices_of_the_blocks_and_nothing_else():
    cfg = OptimConfig(lr=1e-3, min_lr=1e-3, warmup=0, weight_decay=0.1, clip=1e9, muon_lr=0.02)
    sizes = dict(vocab=96, width=32, layers=2, heads=2, kv_heads=1, head_dim=24, mlp=80, qk_groups=1)
    weights = Chameleon(ModelConfig(**sizes), nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    grads = jax.tree.map(lambda w: jax.random.normal(next(keys), w.shape), weights)

    def nadamw(cfg):
        return optax.adamw(cfg.lr, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, nesterov=True)

    def updates(tx):
        return flatten(tx.update(grads, tx.init(weights), weights)[0])

    ours, adam, before = updates(optimizer(cfg)), updates(nadamw(cfg)), flatten(weights)
    shapes = {
        "wq": (32, 48),
        "wk": (32, 24),
        "wv": (32, 24),
        "wo": (48, 32),
        "gate": (32, 80),
        "up": (32, 80),
        "down": (80, 32),
    }
    for name, update in ours.items():
        if (shape := shapes.get(name.split("/")[-1])) is None:
            np.testing.assert_allclose(update, adam[name], rtol=1e-6, err_msg=name)
            continue
        for layer, decayed in zip(update, before[name] * cfg.lr * cfg.weight_decay, strict=True):
            orthogonal = (layer + decayed).reshape(shape) / (cfg.muon_lr * max(1, shape[1] / shape[0]) ** 0.5)
            sizes = np.linalg.svd(orthogonal, compute_uv=False)
            assert sizes.min() > 0.6 and sizes.max() < 1.3, (name, sizes)


def one_device(model_cfg: ModelConfig, optim: OptimConfig, rows: int, model: Chameleon | None = None):
    """The train step on one device, and its first state."""
    cfg = Experiment(
        model=model_cfg,
        optim=optim,
        data=DataConfig(batch=rows),
        mesh=MeshConfig(fsdp=1, compute="float32", remat="none", loss_chunk=7),
    )
    state = host_state(cfg)
    return make_step(cfg, make_mesh(cfg.mesh, jax.devices()[:1])), state._replace(model=model or state.model)


def as_batch(ids: list[list[int]], labels: list[list[int]], T: int) -> Batch:
    """Ragged ids and labels of the original (-100: not learned) -> rows of T, shifted by one."""
    tokens, targets = np.zeros((len(ids), T + 1), np.int32), np.full((len(ids), T + 1), -100)
    for row, (row_ids, row_labels) in enumerate(zip(ids, labels, strict=True)):
        tokens[row, : len(row_ids)], targets[row, : len(row_ids)] = row_ids, row_labels
    positions = np.tile(np.arange(T, dtype=np.int32), (len(ids), 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], targets[:, 1:] >= 0, positions, np.ones_like(positions))


def tensors(model: Chameleon, cfg: ModelConfig, folder) -> dict[str, np.ndarray]:
    save_model(jax.tree.map(jnp.asarray, model), cfg, folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("golden", TRAINED, ids=lambda path: path.name)
def test_steps_are_the_original_s(golden, tmp_path):
    recorded = json.loads((golden / "train.json").read_text())["train_steps"]
    model, cfg = load_model(golden / "ckpt_lumina")
    (b1, b2), lr = recorded["betas"], recorded["lr"]
    optim = OptimConfig(
        steps=len(recorded["steps"]),
        **dict(lr=lr, min_lr=lr, warmup=0, b1=b1, b2=b2, eps=recorded["eps"], clip=recorded["clip_grad"]),
        **dict(weight_decay=recorded["weight_decay"], z_loss=recorded["z_loss_weight"]),
    )
    step, state = one_device(replace(cfg, dropout=0.0), optim, len(recorded["steps"][0]["input_ids"]), model)
    longest = max(len(row) for golden_step in recorded["steps"] for row in golden_step["input_ids"])
    for golden_step in recorded["steps"]:
        state, metrics = step(state, as_batch(golden_step["input_ids"], golden_step["labels"], longest - 1))
        ours = [metrics.xent, metrics.z_loss / optim.z_loss, metrics.loss, metrics.grad_norm]
        theirs = [golden_step[name] for name in ("c_loss", "z_loss", "total", "grad_norm_before_clip")]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    ours = tensors(state.model, cfg, tmp_path)
    with np.load(golden / "train.npz") as arrays:
        after = {name.removeprefix("after_steps/"): arrays[name] for name in arrays if name.startswith("after_steps/")}
    after = {name: array for name, array in after.items() if "vqmodel" not in name}
    assert after
    for name, theirs in after.items():
        rows = slice(None, None, len(ours[name]) // len(theirs))  # ours are written per head, theirs stored per group
        np.testing.assert_allclose(ours[name][rows], theirs, atol=2e-4, err_msg=name)


def test_steps_are_pytorch_s(tmp_path):
    """Losses, gradient norms and weights of four clipped steps of transformers' Chameleon under torch's AdamW."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    cfg = ModelConfig(vocab=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_groups=4, dropout=0.0)
    optim = OptimConfig(steps=4, lr=3e-3, min_lr=3e-3, warmup=2, eps=1e-6, weight_decay=0.3, clip=0.7, z_loss=1e-2)
    step, state = one_device(cfg, optim, rows=3)
    head = tensors(state.model, cfg, tmp_path)["lm_head.weight"]
    rng = np.random.default_rng(4)
    data = [(rng.integers(0, cfg.vocab, (3, 18)), rng.random((3, 17)) < 0.6) for _ in range(optim.steps)]
    theirs, after = torch_steps(tmp_path, head, data, optim)
    for (ids, learn), (xent, z, norm) in zip(data, theirs, strict=True):
        labels = np.where(np.pad(learn, ((0, 0), (1, 0))), ids, -100)
        state, metrics = step(state, as_batch(ids.tolist(), labels.tolist(), ids.shape[1] - 1))
        np.testing.assert_allclose(
            [metrics.xent, metrics.z_loss / optim.z_loss, metrics.grad_norm], [xent, z, norm], rtol=1e-4
        )
    for name, ours in tensors(state.model, cfg, tmp_path).items():
        np.testing.assert_allclose(ours, after[name], atol=2e-5, err_msg=name)


def torch_steps(folder, head: np.ndarray, data, optim: OptimConfig):
    """The same steps in PyTorch: (cross-entropy, z, gradient norm) before each, and the weights after the last."""
    import torch
    from transformers import ChameleonModel

    unused = dict(
        base_channels=32, channel_multiplier=[1], num_res_blocks=1
    )  # transformers builds a VQ encoder as well
    model = ChameleonModel.from_pretrained(folder, dtype=torch.float32, vq_config=unused).train()
    head = torch.nn.Parameter(torch.tensor(head))
    weights = [*(p for name, p in model.named_parameters() if "vqmodel" not in name), head]
    adam = torch.optim.AdamW(
        weights, lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps, weight_decay=optim.weight_decay
    )
    metrics = []
    for number, (ids, learn) in enumerate(data):
        adam.param_groups[0]["lr"] = float(schedule(optim)(number))
        logits = model(input_ids=torch.tensor(ids[:, :-1])).last_hidden_state @ head.T
        logits, targets = logits[torch.tensor(learn)], torch.tensor(ids[:, 1:])[torch.tensor(learn)]
        xent, z = torch.nn.functional.cross_entropy(logits, targets), torch.logsumexp(logits, -1).square().mean()
        adam.zero_grad()
        (xent + optim.z_loss * z).backward()
        metrics.append((xent.item(), z.item(), torch.nn.utils.clip_grad_norm_(weights, optim.clip).item()))
        adam.step()
    after = {f"model.{name}": value.detach().numpy() for name, value in model.named_parameters()}
    return metrics, {**after, "lm_head.weight": head.detach().numpy()}
