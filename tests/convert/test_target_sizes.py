"""A checkpoint in a published layout is served at the sizes of pictures of the original; none is assumed in silence."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from goldens_at import golden_roots
from PIL import Image

import run
from convert import save_model, target_size
from convert.convert import Target, convert, open_source
from convert.describe import describe
from convert.target_sizes import EXPERIMENT, GIVEN, NAME, RECORDED, UNKNOWN, target_size_of
from lumina_jax.cli import sample as sample_verb
from lumina_jax.cli.models import make_prompt_builder, positions_of, settings_of, target_size_for
from lumina_jax.cli.settings import asked_settings
from lumina_jax.config import DataConfig, Experiment, ModelConfig, to_dict
from lumina_jax.conversation import TASKS
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.released import RELEASES

ROOTS = {group: golden_roots(group)[0] / group for group in ("tokenizer", "packing", "crop")}
CASES = {
    case["name"]: case["infer"]["tokens"]
    for case in json.loads((ROOTS["packing"] / "cases.json").read_text())
    if "infer" in case
}
TOY = run.REPOSITORY / run.TOY_MODEL
CROPS = {512: (576, 448), 768: (864, 640), 1024: (1152, 864)}
"""The original's crop of a picture of 4 : 3, as recorded for 640x480 and 12000x9000 (goldens, crop/chosen.json)."""
POSITIONS = {"7B-768-Omni": 5120}
"""max_position_embeddings, the length of training, where it is not Chameleon's 4,096."""


class OneCode:
    """An image tokenizer of Chameleon's stride that takes all pictures for the same code."""

    stride = 16

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return np.full((1, pixels.shape[1] // 16, pixels.shape[2] // 16), 5, np.int32)


class RecordedCodes(OneCode):
    """One that gives ``codes`` to a picture of as many."""

    def __init__(self, codes: np.ndarray):
        self.codes = codes

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self.codes.reshape(super().encode(pixels).shape)


def write(folder: Path, vocab: int, swin: bool = False, **fields: object) -> Path:
    """A checkpoint of random weights in the published layout, with ``fields`` in its config.json."""
    sizes = dict(vocab=vocab, width=8, layers=1, heads=2, kv_heads=2, head_dim=4, mlp=8)
    cfg, rng = ModelConfig(**sizes, qk_groups=1 + swin, post_norm=swin), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    save_model(jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes), cfg, folder, "lumina")
    edit(folder, **fields)
    return folder


def edit(folder: Path, **fields: object) -> None:
    """Sets fields of config.json."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | fields))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with a checkpoint under each released name, its tokenizer beside it."""
    home = tmp_path_factory.mktemp("Alpha-VLLM")
    for release in RELEASES:
        positions = POSITIONS.get(release.short, 4096)
        folder = write(home / release.name, 65536, release.model == "34B", max_position_embeddings=positions)
        (folder / "original_tokenizers").mkdir()
        tokenizer = ROOTS["tokenizer"] / "meta_tokenizer" / "text_tokenizer.json"
        (folder / "original_tokenizers" / tokenizer.name).symlink_to(tokenizer)
    return home


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("small") / "model", 96)


@pytest.fixture
def unknown(small, tmp_path) -> Path:
    """A checkpoint in the published layout whose folder has a name of its own."""
    return shutil.copytree(small, tmp_path / "mine")


def served(*words: str) -> tuple:
    """(the options of ``run.py sample WORDS``, a function image tokenizer, Vocab -> its PromptBuilder)."""
    options = run.parse(["sample", *words])
    target = target_size_for(options, "a picture")
    return options, lambda vq, vocab: make_prompt_builder(vq, vocab, None, True, positions_of(options), target)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.short)
def test_a_released_checkpoint_has_the_original_s_sizes_defaults_and_tokens(release, published, vocab, capsys):
    options, builder_for = served("--model", str(published / release.name))
    assert f"{release.target_size} is assumed, that of {release.name}" in capsys.readouterr().err
    builder, settings, target = (
        builder_for(OneCode(), vocab),
        asked_settings(options, settings_of(None)),
        release.target_size,
    )
    recorded = json.loads((ROOTS["crop"] / "crop_size_lists.json").read_text())["lists"][str(target)]
    assert builder.sizes == [tuple(size) for size in recorded]

    painted = builder.generate("A rocket on the launch pad", None, settings("generate"))
    # Recorded for 128x128. The tokenizer splits a number into its digits, whose ids follow each other from 16403, that of 0, on.
    digits = [[16403 + int(digit) for digit in number] for number in ("128", str(target))]
    tokens = CASES["prompt_only_none"]
    start = tokens.index(digits[0][0])
    assert tokens[start : start + 3] == tokens[start + 4 : start + 7] == digits[0]
    expected = [*tokens[:start], *digits[1], tokens[start + 3], *digits[1], *tokens[start + 7 :]]
    assert painted.ids.tolist() == expected and painted.size == (target // 16, target // 16)

    shown = builder.task("depth", "", [Image.new("RGB", (1200, 900))], settings("depth"))
    width, height = CROPS[target]
    assert shown.size == (height // 16, width // 16)
    # As the original packs it: the words as recorded; begin-image, height and width as 8804 + units of 32 px, rows of ids of codes,
    # each 4 + the code, that end in 8803; end-image, end of turn.
    words = CASES["rgba_resized_prompt"][: CASES["rgba_resized_prompt"].index(8197)]
    row = [4 + 5] * (width // 16) + [8803]
    picture = [8197, 8804 + height // 32, 8804 + width // 32, *row * (height // 16), 8196]
    assert shown.ids.tolist() == [*words, *picture, 8710]

    for task, prompt in (("generate", painted), ("depth", shown)):
        for field in ("guidance", "image_top_k", "text_top_k", "temperature"):
            assert getattr(prompt.cfg, field) == getattr(TASKS[task], field)
    assert painted.length <= builder.trained
    assert release.training != "Omni-SFT" or shown.length <= builder.trained


def test_a_recorded_prompt_with_a_picture_comes_out_token_for_token(published, vocab):
    ids = np.array(CASES["rgba_resized_prompt"])  # recorded at a target size of 128, where the whole picture fits
    codes = ids[(ids >= 4) & (ids <= 8195)] - 4
    _, builder_for = served("--model", str(published / "Lumina-mGPT-7B-768-Omni"), "--target-size", "128")
    with Image.open(ROOTS["packing"] / "images" / "rocket200x150.png") as image:
        prompt = builder_for(RecordedCodes(codes), vocab).task("depth", "", [image], settings_of(None))
    assert prompt.ids.tolist() == ids.tolist()


def test_a_name_is_found_in_hugging_face_s_cache_behind_links_and_in_config_json(unknown, tmp_path, monkeypatch):
    cached, stored = tmp_path / "hub/models--Alpha-VLLM--Lumina-mGPT-7B-1024/snapshots/0f3a", tmp_path / "7B-768"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(unknown)
    shutil.copytree(unknown, stored)
    (tmp_path / "link").symlink_to(stored)
    monkeypatch.chdir(stored)
    for path, size in ((cached, 1024), (f"{tmp_path}/link/", 768), (".", 768), (stored / "config.json", 768)):
        found = target_size_of(open_source(path))
        assert (found.size, found.source) == (size, NAME) and found.line.count("assumed") == 1
    assert target_size_of(open_source(unknown)).source == UNKNOWN
    for name in ("Alpha-VLLM/Lumina-mGPT-7B-1024", "/ckpts/7B-1024/"):
        edit(unknown, _name_or_path=name)
        assert target_size(unknown) == 1024
    assert (
        "which its config.json names: as itself, or as the model that it was tuned from"
        in target_size_of(open_source(unknown)).line
    )


def test_a_size_that_is_unknown_is_refused_before_weights_are_loaded(unknown, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sample_verb, "load_for_sampling", None)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    Path("p.jsonl").write_text('not JSON\n{"prompt": "w", "size": "64x64"}\n{"prompt": "w"}\n')
    for words, purpose in (
        ("sample --prompt a", "a prompt without --size"),
        ("sample --prompt a --free-size", "a prompt without --size"),
        ("sample --task depth --image a.png", "--image"),
        ("sample --raw --prompt a --image a.png", "--image"),
        ("sample --prompts p.jsonl", "line 3 of p.jsonl"),
        ("sample --list-sizes", "--list-sizes"),
        ("refine a.png", "a picture to refine"),
        ("evaluate --attention a", "--attention without --size"),
    ):
        assert run.main([*words.split(), "--model", "mine"]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "mine: nothing tells" in message and f"and {purpose} needs them" in message
        assert "7B-768-Omni" in message and "give --target-size 512, 768, 1024" in message
    assert not Path("out").exists()
    with pytest.raises(ValueError, match="nothing tells for which sizes"):
        target_size(unknown)


def test_what_needs_no_size_asks_for_none(unknown, vocab, capsys):
    for words in (["--raw", "--prompt", "What is red?"], ["--prompt", "a", "--size", "64x64"]):
        options = run.parse(["sample", "--model", str(unknown), *words])
        assert target_size_for(options, sample_verb._needs_sizes(options, [])) is None
    assert not capsys.readouterr().err
    options = run.parse(["sample", "--model", str(unknown), "--chat"])
    assert target_size_for(options, sample_verb._needs_sizes(options, []), needed=False) is None
    assert "a picture in the dialog needs them" in capsys.readouterr().err
    builder, cfg = make_prompt_builder(OneCode(), vocab, None), settings_of(None)
    assert builder.message("What is red?", [], cfg).size is None and builder.generate("a", (64, 32), cfg).size == (2, 4)
    with pytest.raises(ValueError, match="unknown; give its target size"):
        builder.generate("a", None, cfg)
    with pytest.raises(ValueError, match="unknown; give its target size"):
        builder.message("a", [Image.new("L", (64, 64))], cfg)


def test_an_import_records_the_size_and_every_layout_keeps_it(small, tmp_path):
    pytest.importorskip("torch")
    folder = shutil.copytree(small, tmp_path / "Lumina-mGPT-7B-768")
    assert "Lumina-mGPT-7B-768, by its name: FP-SFT, stage 2" in describe(folder).text()
    for number, layout in enumerate(("ours", "hf", "meta", "ours", "lumina")):
        notes = convert(folder, tmp_path / f"{number}", Target(layout), show=False)
        folder = tmp_path / f"{number}"
        found = target_size_of(open_source(folder))
        assert (found.size, found.source, found.line) == (768, RECORDED, "")
        assert sum("768 is assumed" in note for note in notes) == (number == 0)
    assert "at most the area of 768 x 768 px, which its metadata record" in describe(folder).text()


def test_an_option_wins_and_says_what_it_contradicts(unknown, tmp_path):
    assert target_size_of(open_source(unknown), 512).line == ""
    assert run.main(["convert", "import", str(unknown), str(tmp_path / "given"), "--target-size", "1024"]) == 0
    found = target_size_of(open_source(tmp_path / "given"), 768)
    assert (found.size, found.source) == (
        768,
        GIVEN,
    ) and "takes the place of 1024, which its metadata record" in found.line
    named = shutil.copytree(unknown, tmp_path / "Lumina-mGPT-7B-512")
    found = target_size_of(open_source(named), 768)
    assert "takes the place of 512, that of Lumina-mGPT-7B-512, whose name it has" in found.line


def test_an_import_of_an_unknown_size_says_so(unknown, tmp_path):
    notes = convert(unknown, tmp_path / "plain", Target("ours"), show=False)
    assert notes[-1].startswith("its target size is unknown and not recorded")
    assert target_size_of(open_source(tmp_path / "plain")).source == UNKNOWN
    assert "unknown; painting and showing pictures needs --target-size" in describe(tmp_path / "plain").text()


def test_an_experiment_tells_its_size_and_yields_to_an_option(unknown, tmp_path):
    experiment = Experiment(name="fine_tuned", model=open_source(unknown).cfg, data=DataConfig(size=768))
    (unknown / "experiment.json").write_text(json.dumps(to_dict(experiment)))
    source = open_source(unknown)
    assert (target_size_of(source).size, target_size_of(source).source) == (768, EXPERIMENT)
    assert "takes the place of 768, that of its experiment fine_tuned" in target_size_of(source, 1024).line
    convert(unknown, tmp_path / "other", Target("ours", target_size=1024), show=False)
    assert target_size(tmp_path / "other") == 1024
    assert target_size_of(open_source(TOY)).source == EXPERIMENT
    with pytest.raises(ValueError, match="it resizes none; leave the target size out, and give --size"):
        target_size_of(open_source(TOY), 512)


@pytest.mark.parametrize("value", ["768", True, 0, 7.5, []])
def test_a_damaged_record_is_named(value, unknown):
    edit(unknown, target_size=value)
    with pytest.raises(ValueError, match=r"target_size is .*, but a whole number of px is expected"):
        target_size_of(open_source(unknown))


def test_sizes_are_listed_with_the_tokens_of_a_picture(published, capsys):
    assert run.main(["sample", "--list-sizes", "--target-size", "768"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 73 and lines[0] == "1536x384 2,332 tokens" and "768x768 2,356 tokens" in lines
    assert run.main(["sample", "--list-sizes", "--model", str(published / "Lumina-mGPT-7B-768-Omni")]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert run.main(["sample", "--list-sizes"]) == 0 and "128x128 76 tokens" in capsys.readouterr().out
