"""Pictures of Chameleon's own checkpoints: tokens in and out are those of transformers' Chameleon, one by one."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from convert import load_model
from convert.convert import open_source
from convert.pictures import carried_encoder
from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.sample import generate
from lumina_jax.sample.picture import split
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sample.stream import stream
from lumina_jax.vocab import CHAMELEON, Vocab

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EDGE, ROWS = 64, 4
"""Of a picture, in pixels and in codes; the released models have 512 and 32."""
GREEDY = SampleConfig(guidance=1.0, image_top_k=1, text_top_k=1, min_p=0.0, parallel="off", max_new_tokens=24)
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, tokenizer_path):
    """A random Chameleon of transformers, its processor and its folder, which holds the encoder of the image tokenizer."""
    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    vq = dict(embed_dim=8, latent_channels=8, resolution=EDGE, base_channels=32, channel_multiplier=[1] * 5)
    config = transformers.ChameleonConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocabulary_map=tokenizer.get_vocab(),
        vq_config=dict(**vq, num_embeddings=8192, num_res_blocks=1),
    )
    model = transformers.ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("models") / "chameleon-7b"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pil = transformers.models.chameleon.image_processing_pil_chameleon.ChameleonImageProcessorPil
    images = pil(size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE})
    processor = transformers.ChameleonProcessor(images, tokenizer, image_seq_length=ROWS * ROWS)
    return SimpleNamespace(model=model, processor=processor, folder=folder)


@pytest.fixture(scope="module")
def ours(theirs):
    """The same checkpoint, and the builder of its prompts."""
    model, _ = load_model(theirs.folder)
    vocab = Vocab.load(theirs.folder, replace(CHAMELEON, shape=(ROWS, ROWS)))
    return SimpleNamespace(model=model, builder=PromptBuilder(carried_encoder(open_source(theirs.folder)), vocab))


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Random blocks of colour, which a resampling filter cannot even out."""
    pixels = np.random.default_rng(width).integers(0, 256, (height // 9 + 1, width // 9 + 1, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels, mode).resize((width, height), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(90, 70, "RGB"), (70, 123, "RGB"), (64, 64, "RGBA"), (31, 40, "RGBA")]
)
def test_a_prompt_with_pictures_is_the_processor_s(width, height, mode, theirs, ours):
    images = [photo(width, height, mode), photo(80, 64)]
    inputs = theirs.processor(images=images, text=f"<image>{QUESTION}<image>\n  And 42?", return_tensors="pt")
    (expected,) = inputs.input_ids.numpy()
    codes = theirs.model.model.get_image_tokens(inputs.pixel_values).numpy()
    expected[expected == theirs.processor.image_token_id] = codes.ravel()
    prompt = ours.builder.message(f"<|image|>{QUESTION}<|image|>\n  And 42?", images, GREEDY)
    assert len(np.unique(codes)) > 8
    np.testing.assert_array_equal(prompt.ids, expected)


def test_words_about_a_picture_are_those_of_transformers(theirs, ours):
    image = photo(90, 70)
    inputs = theirs.processor(images=[image], text=f"{QUESTION}<image>", return_tensors="pt")
    expected = theirs.model.generate(
        **inputs, max_new_tokens=24, do_sample=False, eos_token_id=ours.builder.vocab.end_of_turn
    )
    prompt = ours.builder.message(f"{QUESTION}<|image|>", [image], GREEDY)
    (answer,) = generate(ours.model, [prompt.ids], jax.random.key(0), GREEDY, ours.builder.vocab)
    expected = expected[0, inputs.input_ids.shape[1] :].numpy()
    assert len(answer) == 24 and len(np.unique(answer)) > 4
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_that_of_transformers_with_its_mask_lifted(guidance, theirs, ours):
    vocab = ours.builder.vocab
    cfg = replace(GREEDY, guidance=guidance)
    prompt = replace(ours.builder, vq=SimpleNamespace(stride=16)).generate("A lighthouse.", None, cfg)
    expected = theirs.processor(text="A lighthouse.", return_tensors="pt").input_ids[0].tolist()
    assert prompt.ids.tolist() == expected and prompt.size == (ROWS, ROWS) and prompt.picture == ROWS * ROWS + 2
    options = dict(sizes=[prompt.size], opens=[True])
    (partial,) = stream(ours.model, [prompt.ids], jax.random.key(0), cfg, vocab, **options)
    length = len(expected)
    for _ in range(cfg.max_new_tokens):
        expected.append(next_token(theirs.model, expected, length, vocab, guidance))
    np.testing.assert_array_equal(partial.tokens, expected[length:])
    assert split(partial.tokens, vocab)[0].shape == (ROWS, ROWS)
    assert len(np.unique(partial.tokens[1 : 1 + ROWS * ROWS])) > 4


def next_token(model, ids: list[int], length: int, vocab: Vocab, guidance: float) -> int:
    """The greedy token behind ``ids``, of which ``length`` are the prompt: the rule written out, transformers' mask lifted."""
    place = len(ids) - length
    if place in (0, ROWS * ROWS + 1):
        return vocab.eoi if place else vocab.boi
    logits = unmasked(model, ids)
    if place > ROWS * ROWS:
        logits[vocab.code_ids] = -np.inf
        return int(logits.argmax())
    uncond = unmasked(model, ids[length:])
    guided = logits if guidance == 1 else guidance * (logits - uncond) + uncond
    return int(vocab.code_ids[guided[vocab.code_ids].argmax()])


def unmasked(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]).numpy()


def test_an_encoder_paints_no_pictures(ours):
    with pytest.raises(InputError, match=r"chameleon-7b holds the encoder.*vqgan.ckpt"):
        ours.builder.vq.decode(np.zeros((1, ROWS, ROWS), np.int32))
