"""Chameleon's image tokenizer equals the original, at every size and with attention at any level; its files round-trip."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image
from safetensors import safe_open

from convert.vqvae import from_torch, load_vqvae, read_config, save_vqvae, table, to_torch
from lumina_jax.config import VQConfig
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.pictures.pixels import to_image, to_pixels, whiten

GOLDENS = Path(__file__).parents[1] / "goldens"
ROOTS = [root for root in (GOLDENS, Path(__file__).parents[3] / "shared" / "goldens") if root.is_dir()]
CASES = [
    pytest.param(path.parent, case["name"], id=f"{root.parent.name}-{path.parent.name}-{case['name']}")
    for root in ROOTS
    for path in sorted(root.glob("vq/*/cases.json"))
    for case in json.loads(path.read_text())["cases"]
]
HF = [path for root in ROOTS for path in sorted(root.glob("lm/*/hf_vqmodel.npz"))]
LATENT_TOLERANCE = {"small": 2e-4, "real": 1e-3}
TINY = VQConfig(codes=48, embed=8, latent=16, base=32, multipliers=(1, 2, 1), res_blocks=1, resolution=64)
# 105 is no multiple of the stride, so the nominal sizes going down differ from those going up.
ATTENDING = replace(TINY, attn_resolutions=(52, 26), resolution=105, res_blocks=2)


def recipe(folder: Path) -> dict[str, np.ndarray]:
    """The weights the vectors in ``folder`` were recorded with, redrawn from their seed."""
    cases = json.loads((folder / "cases.json").read_text())
    shapes = json.loads((folder / "state_dict_shapes.json").read_text())
    state = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        value = np.random.default_rng([cases["seed"], index]).standard_normal(shape)
        if name == "quantize.embedding.weight":
            value = cases.get("emb_scale", 0.6) * value
        elif len(shape) == 4:
            value = value / math.sqrt(math.prod(shape[1:]))
        else:
            value = 1 + 0.1 * value if name.endswith(".weight") else 0.05 * value
        state[name] = value.astype(np.float32)
    return state


@pytest.fixture(scope="module")
def original():
    """Folder of vectors -> the tokenizer they were recorded with; the last one is kept."""
    kept = {}

    def make(folder: Path) -> VQVAE:
        if folder.name not in kept:
            kept.clear()
            cfg = read_config(folder / "vqgan.yaml") if (folder / "vqgan.yaml").is_file() else VQConfig()
            kept[folder.name] = from_torch(cfg, recipe(folder))
        return kept[folder.name]

    return make


def empty(cfg: VQConfig) -> VQVAE:
    """A tokenizer of shapes without values."""
    return jax.eval_shape(lambda: VQVAE(cfg, nnx.Rngs(0)))


def drawn(cfg: VQConfig, seed: int = 0) -> VQVAE:
    """A tokenizer whose every weight, norms and biases included, is random."""
    rng = np.random.default_rng(seed)

    def value(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1])), jnp.float32)

    return jax.tree.map(value, empty(cfg))


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_equals_the_original(folder, name, original):
    vqvae, golden = original(folder), np.load(folder / f"{name}.npz")
    image = Image.open(folder / f"{name}.png")
    if "whitened_u8" in golden:
        np.testing.assert_array_equal(np.asarray(whiten(image)), golden["whitened_u8"])
    pixels = to_pixels(image)[None]

    latents = np.asarray(vqvae.latents(pixels))[0].transpose(2, 0, 1)
    np.testing.assert_allclose(latents, golden["latents"], rtol=0, atol=LATENT_TOLERANCE[folder.name])
    codes = np.asarray(vqvae.encode(pixels))
    assert codes.dtype == np.int32
    assert codes.shape[1:] == latents.shape[1:]
    clear = golden["margin"] >= 1e-3
    np.testing.assert_array_equal(codes.reshape(-1)[clear], golden["tokens"][clear])

    for tokens, decoded, png in (("tokens", "decoded", "recon"), ("rand_tokens", "decoded_rand", "randtok")):
        if tokens not in golden:
            continue
        pixels = np.asarray(vqvae.decode(golden[tokens].reshape(codes.shape)))[0]
        if decoded in golden:
            np.testing.assert_allclose(pixels.transpose(2, 0, 1), golden[decoded], rtol=0, atol=1e-3)
        levels = np.asarray(Image.open(folder / f"{name}_{png}.png"), np.int32)
        assert np.abs(np.asarray(to_image(pixels), np.int32) - levels).max() <= 1


@pytest.mark.parametrize("path", HF, ids=[f"{p.parents[2].parent.name}-{p.parent.name}" for p in HF])
def test_encoder_equals_the_one_inside_hugging_face_checkpoints(path):
    checkpoint = path.parent / "ckpt_lumina"
    sizes = json.loads((checkpoint / "config.json").read_text())["vq_config"]
    cfg = VQConfig(
        codes=sizes["num_embeddings"],
        embed=sizes["embed_dim"],
        latent=sizes["latent_channels"],
        base=sizes["base_channels"],
        multipliers=tuple(sizes["channel_multiplier"]),
        res_blocks=sizes["num_res_blocks"],
        resolution=sizes["resolution"],
    )
    state = to_torch(drawn(cfg))
    names = set()
    for shard in checkpoint.glob("*.safetensors"):
        with safe_open(shard, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open does not iterate)
                if name.startswith("model.vqmodel."):
                    names.add(name.removeprefix("model.vqmodel."))
                    state[name.removeprefix("model.vqmodel.")] = tensors.get_tensor(name)
    assert names == {name for name in state if not name.startswith("decoder.")}
    golden = np.load(path)
    codes = from_torch(cfg, state).encode(golden["pixel_values"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(np.asarray(codes).reshape(-1), golden["vq_indices"])


def test_encoder_equals_transformers():
    modeling = pytest.importorskip("transformers.models.chameleon.modeling_chameleon")
    torch = pytest.importorskip("torch")
    cfg = ATTENDING
    vqvae = drawn(cfg)
    theirs = modeling.ChameleonVQVAE(
        modeling.ChameleonVQVAEConfig(
            embed_dim=cfg.embed,
            num_embeddings=cfg.codes,
            latent_channels=cfg.latent,
            resolution=cfg.resolution,
            base_channels=cfg.base,
            channel_multiplier=list(cfg.multipliers),
            num_res_blocks=cfg.res_blocks,
            attn_resolutions=list(cfg.attn_resolutions),
        )
    )
    state = {name: torch.tensor(value) for name, value in to_torch(vqvae).items() if not name.startswith("decoder.")}
    theirs.load_state_dict(state)
    pixels = picture(24, 32, batch=2)
    with torch.no_grad():
        channels_first = torch.tensor(pixels.transpose(0, 3, 1, 2))
        latents = theirs.quant_conv(theirs.encoder(channels_first))
        codes = theirs.encode(channels_first).image_tokens
    np.testing.assert_allclose(
        np.asarray(vqvae.latents(pixels)), latents.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4
    )
    np.testing.assert_array_equal(np.asarray(vqvae.encode(pixels)).reshape(-1), codes.numpy())


class TorchVQ:
    """The original's encoder and decoder as plain functions of a state dict, driven by which names it holds."""

    def __init__(self, state: dict[str, np.ndarray], levels: int):
        self.torch = pytest.importorskip("torch")
        self.state = {name: self.torch.tensor(value) for name, value in state.items()}
        self.levels = levels

    def conv(self, x, name, stride=1, padding=None):
        kernel, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        padding = kernel.shape[-1] // 2 if padding is None else padding
        return self.torch.nn.functional.conv2d(x, kernel, bias, stride, padding)

    def norm(self, x, name):
        return self.torch.nn.functional.group_norm(
            x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6
        )

    def swished(self, x, name):
        x = self.norm(x, name)
        return x * self.torch.sigmoid(x)

    def res(self, x, name):
        h = self.conv(self.swished(x, f"{name}.norm1"), f"{name}.conv1")
        h = self.conv(self.swished(h, f"{name}.norm2"), f"{name}.conv2")
        return h + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.state else x)

    def attn(self, x, name):
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{letter}").flatten(2) for letter in "qkv")
        weights = self.torch.softmax(q.mT @ k * x.shape[1] ** -0.5, dim=-1)
        return x + self.conv((v @ weights.mT).reshape(x.shape), f"{name}.proj_out")

    def level(self, x, name):
        block = 0
        while f"{name}.block.{block}.norm1.weight" in self.state:
            x = self.res(x, f"{name}.block.{block}")
            if f"{name}.attn.{block}.norm.weight" in self.state:
                x = self.attn(x, f"{name}.attn.{block}")
            block += 1
        return x

    def mid(self, x, name):
        return self.res(self.attn(self.res(x, f"{name}.block_1"), f"{name}.attn_1"), f"{name}.block_2")

    def latents(self, x):
        x = self.conv(x, "encoder.conv_in")
        for i in range(self.levels):
            x = self.level(x, f"encoder.down.{i}")
            if i < self.levels - 1:
                x = self.torch.nn.functional.pad(x, (0, 1, 0, 1))
                x = self.conv(x, f"encoder.down.{i}.downsample.conv", stride=2, padding=0)
        x = self.swished(self.mid(x, "encoder.mid"), "encoder.norm_out")
        return self.conv(self.conv(x, "encoder.conv_out"), "quant_conv")

    def decode(self, codes):
        x = self.state["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
        x = self.mid(self.conv(self.conv(x, "post_quant_conv"), "decoder.conv_in"), "decoder.mid")
        for i in reversed(range(self.levels)):
            x = self.level(x, f"decoder.up.{i}")
            if i > 0:
                x = self.torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.conv(x, f"decoder.up.{i}.upsample.conv")
        return self.conv(self.swished(x, "decoder.norm_out"), "decoder.conv_out")


@pytest.mark.parametrize("cfg", [TINY, ATTENDING], ids=["no attention", "attention in levels"])
def test_equals_torch(cfg):
    vqvae = drawn(cfg)
    torch_vq = TorchVQ(to_torch(vqvae), len(cfg.multipliers))
    pixels = picture(24, 32, batch=2)
    latents = torch_vq.latents(torch_vq.torch.tensor(pixels.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(
        np.asarray(vqvae.latents(pixels)), latents.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4
    )
    codes = np.random.default_rng(1).integers(cfg.codes, size=(2, 6, 8))
    decoded = torch_vq.decode(torch_vq.torch.tensor(codes))
    np.testing.assert_allclose(np.asarray(vqvae.decode(codes)), decoded.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4)


def test_attention_stands_where_the_nominal_resolution_says():
    names = {row.hf_name for row in table(empty(ATTENDING))}
    # 105 halves to 52 and 26 going down; going up from 105 // 4 = 26 it doubles to 52 and 104.
    attends = {
        half: [f"{half}.{i}.attn.0.q.weight" in names for i in range(3)] for half in ("encoder.down", "decoder.up")
    }
    assert attends == {"encoder.down": [False, True, True], "decoder.up": [False, True, True]}
    names = {row.hf_name for row in table(empty(replace(ATTENDING, attn_resolutions=(105,))))}
    attends = {
        half: [f"{half}.{i}.attn.0.q.weight" in names for i in range(3)] for half in ("encoder.down", "decoder.up")
    }
    assert attends == {"encoder.down": [True, False, False], "decoder.up": [False, False, False]}


@pytest.mark.smoke
def test_the_real_size_has_the_published_names_and_shapes():
    shapes = json.loads((GOLDENS / "vq" / "real" / "state_dict_shapes.json").read_text())
    leaves = jax.tree.leaves(empty(VQConfig()))
    rows = table(empty(VQConfig()))
    assert {row.hf_name for row in rows} == set(shapes)
    assert len({row.path for row in rows}) == len(rows)
    for row, leaf in zip(rows, leaves, strict=True):
        sizes = dict(zip(row.axes.split(), leaf.shape, strict=True))
        assert [sizes[letter] for letter in row.hf_axes.split()] == shapes[row.hf_name], row


@pytest.mark.smoke
def test_a_picture_has_the_same_codes_alone_in_a_batch_and_on_many_devices():
    vqvae = drawn(TINY)
    pixels = picture(16, 24, batch=8)
    codes = vqvae.encode(pixels)
    assert (codes.shape, codes.dtype) == ((8, 4, 6), jnp.int32)
    assert (vqvae.codes, vqvae.stride) == (48, 4)
    np.testing.assert_array_equal(np.asarray(vqvae.encode(pixels[3:4]))[0], np.asarray(codes)[3])
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(pixels, jax.NamedSharding(mesh, jax.P("batch")))
    spread = vqvae.encode(split)
    assert spread.sharding.shard_shape(spread.shape) == (1, 4, 6)
    np.testing.assert_array_equal(np.asarray(spread), np.asarray(codes))


def test_equal_codes_give_the_first():
    vqvae = drawn(TINY)
    state = to_torch(vqvae)
    state["quantize.embedding.weight"] = np.tile(state["quantize.embedding.weight"][:16], (3, 1))
    codes = np.asarray(from_torch(TINY, state).encode(picture(16, 24)))
    assert codes.max() < 16


def test_pixels_off_the_stride_or_of_the_wrong_kind_are_refused():
    vqvae = drawn(TINY)
    with pytest.raises(ValueError, match=r"24x18 pixels.*stride 4"):
        vqvae.encode(picture(18, 24))
    with pytest.raises(ValueError, match=r"\[B Y X 3\]"):
        vqvae.encode(picture(16, 24)[0])
    with pytest.raises(ValueError, match=r"uint8.*\[-1, 1\]"):
        vqvae.encode(np.zeros((1, 16, 24, 3), np.uint8))


@pytest.mark.parametrize("location", ["", "tokenizer", "original_tokenizers", "tokenizer/vqgan.ckpt"])
def test_files_round_trip_bitwise(location, tmp_path):
    pytest.importorskip("torch")
    vqvae = drawn(ATTENDING)
    save_vqvae(vqvae, tmp_path / location.removesuffix("/vqgan.ckpt"))
    again = load_vqvae(tmp_path / location if location.endswith(".ckpt") else tmp_path)
    assert again.cfg == vqvae.cfg
    assert jax.tree.structure(again) == jax.tree.structure(vqvae)
    jax.tree.map(np.testing.assert_array_equal, again, vqvae)


def test_the_originals_file_round_trips(tmp_path):
    torch = pytest.importorskip("torch")
    folder = GOLDENS / "vq" / "small"
    state = {name: torch.tensor(value) for name, value in recipe(folder).items()}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, tmp_path / "vqgan.ckpt")
    shutil.copy(folder / "vqgan.yaml", tmp_path)
    save_vqvae(load_vqvae(tmp_path), tmp_path / "ours")
    saved = torch.load(tmp_path / "ours" / "vqgan.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == set(state)
    assert all(torch.equal(saved[name], state[name]) for name in state)
    theirs, ours = (
        yaml.safe_load((f / "vqgan.yaml").read_text())["model"]["params"] for f in (folder, tmp_path / "ours")
    )
    assert ours == theirs


def test_a_state_that_does_not_fit_lists_every_problem():
    state = to_torch(drawn(TINY))
    del state["decoder.conv_in.bias"]
    state["quant_conv.bias"] = np.zeros(5, np.float32)
    state["encoder.extra"] = np.zeros(2, np.float32)
    state["loss.logvar"] = np.zeros((), np.float32)
    with pytest.raises(ValueError) as caught:
        from_torch(TINY, state)
    message = str(caught.value)
    for words in (
        "missing: decoder.conv_in.bias (32,)",
        "quant_conv.bias is (5,)",
        "says (8,)",
        "unexpected: encoder.extra",
    ):
        assert words in message
    assert "loss" not in message


def test_absent_and_foreign_files_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(FileNotFoundError, match=r"no vqgan.ckpt in"):
        load_vqvae(tmp_path)
    torch.save({"model": {}}, tmp_path / "vqgan.ckpt")
    with pytest.raises(FileNotFoundError, match=r"vqgan.yaml"):
        load_vqvae(tmp_path)
    folder = GOLDENS / "vq" / "small"
    shutil.copy(folder / "vqgan.yaml", tmp_path)
    with pytest.raises(ValueError, match="state dict"):
        load_vqvae(tmp_path)
    config = yaml.safe_load((folder / "vqgan.yaml").read_text())
    config["model"]["params"]["ddconfig"]["double_z"] = True
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="double_z"):
        load_vqvae(tmp_path)
    (tmp_path / "vqgan.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match=r"no vqgan.yaml.*params"):
        load_vqvae(tmp_path)
