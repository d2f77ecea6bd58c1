"""A checkpoint converted through any other layout and back is equal bit for bit."""

import pytest
from goldens_at import golden_roots

torch = pytest.importorskip("torch")

from checkpoints import Sizes, differences, torch_tensors, write_meta  # noqa: E402

from convert import load_model, save_model  # noqa: E402
from convert.convert import Target, convert  # noqa: E402

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
@pytest.mark.parametrize("middle", ["hf", "lumina", "meta"])
def test_meta_comes_back_through_any_layout(model, middle, tmp_path):
    start = write_meta(tmp_path / "start", MODELS[model])
    steps = ["ours", middle, "ours", "meta"]
    folder = start
    for number, layout in enumerate(steps):
        following = tmp_path / f"{number}-{layout}"
        convert(folder, following, Target(layout, 3 if layout in ("hf", "lumina") else None), show=False)
        folder = following
    (back,) = (folder / "models").iterdir()
    assert not differences(torch_tensors(start), torch_tensors(back))


@pytest.mark.parametrize("checkpoint", LM, **IDS)
@pytest.mark.parametrize("middle", ["hf", "lumina", "meta"])
def test_hugging_face_comes_back_through_any_layout(checkpoint, middle, tmp_path):
    layout = "hf" if checkpoint.name == "ckpt_hf5" else "lumina"
    folder = checkpoint
    for number, step in enumerate(["ours", middle, layout] if middle != "meta" else ["meta", layout]):
        following = tmp_path / f"{number}-{step}"
        convert(folder, following, Target(step), show=False)
        folder = following
    before, after = torch_tensors(checkpoint), torch_tensors(folder)
    if middle == "meta":  # Meta's layout has no VQ encoder
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
