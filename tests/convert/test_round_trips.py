"""What goes in comes out again, bit for bit, whatever layouts lie between."""

import pytest
from goldens_at import golden_roots

torch = pytest.importorskip("torch")

from checkpoints import Sizes, differences, torch_tensors, write_meta  # noqa: E402

from convert import load_model, save_model  # noqa: E402
from convert.convert import Wish, convert  # noqa: E402

MODELS = {
    "7b": Sizes(heads=4, kv_heads=4, shards=1),
    "30b": Sizes(heads=16, kv_heads=4, shards=4, swin=True, vocab=128, theta=50_000.0),
    "gqa": Sizes(shards=2, eps=3e-5),
    "float32": Sizes(dtype=torch.float32),
}
META = sorted({folder for root in golden_roots("meta") for folder in (root / "meta").glob("*/models/*")})
LM = sorted({ckpt for root in golden_roots("lm") for ckpt in (root / "lm").glob("*/ckpt_*")})
IDS = dict(ids=lambda path: f"{path.parts[-3]}-{path.name}")


@pytest.mark.smoke
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("there", ["hf", "lumina", "meta"])
def test_meta_comes_back_through_any_layout(model, there, tmp_path):
    start = write_meta(tmp_path / "start", MODELS[model])
    steps = ["ours", there, "ours", "meta"]
    at = start
    for number, layout in enumerate(steps):
        following = tmp_path / f"{number}-{layout}"
        convert(at, following, Wish(layout, 3 if layout in ("hf", "lumina") else None), show=False)
        at = following
    (back,) = (at / "models").iterdir()
    assert not differences(torch_tensors(start), torch_tensors(back))


@pytest.mark.parametrize("checkpoint", LM, **IDS)
@pytest.mark.parametrize("there", ["hf", "lumina", "meta"])
def test_hugging_face_comes_back_through_any_layout(checkpoint, there, tmp_path):
    own = "hf" if checkpoint.name == "ckpt_hf5" else "lumina"
    at = checkpoint
    for number, layout in enumerate(["ours", there, own] if there != "meta" else ["meta", own]):
        following = tmp_path / f"{number}-{layout}"
        convert(at, following, Wish(layout), show=False)
        at = following
    before, after = torch_tensors(checkpoint), torch_tensors(at)
    if there == "meta":  # it has no place for the VQ encoder
        before = {name: tensor for name, tensor in before.items() if "vqmodel" not in name}
    assert not differences(before, after)


def test_saving_again_replaces_the_checkpoint_and_nothing_else(tmp_path):
    model, cfg = load_model(write_meta(tmp_path / "start", MODELS["gqa"]))
    target = tmp_path / "target"
    save_model(model, cfg, target, shards=3)
    (target / "tokenizer.json").write_text("kept")
    save_model(model, cfg, target, "meta")
    assert sorted(path.name for path in target.iterdir()) == [
        "consolidate_params.json",
        "consolidated.00.pth",
        "consolidated.01.pth",
        "params.json",
        "tokenizer.json",
    ]
    assert not differences(torch_tensors(tmp_path / "start"), torch_tensors(target))
    assert not list(tmp_path.glob("*.unfinished"))
