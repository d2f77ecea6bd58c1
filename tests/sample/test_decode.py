"""Laws of one-by-one decoding: the original's tokens, hidden prompts, batches, seeds, sizes, errors."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_at import on_goldens
from tiny import tiny_model, tiny_vocab

from convert import load_model
from lumina_jax.config import MeshConfig, SampleConfig
from lumina_jax.layout import encode_grid, grid_tokens
from lumina_jax.sample import decode, generate, picture
from lumina_jax.sample.stream import stream
from lumina_jax.sharding import make_mesh, shardings

VOCAB = tiny_vocab()
MODEL = tiny_model()
GREEDY = SampleConfig(guidance=3.0, image_top_k=1, text_top_k=1, max_new_tokens=300, parallel="off")
SAMPLED = replace(GREEDY, temperature=1.3, image_top_k=6, text_top_k=40)
KEY = jax.random.key(0)
HEAD = (VOCAB.boi, VOCAB.size_id(2), VOCAB.size_id(1))
PROMPTS = [
    np.array([0, 22, 23, 24, *HEAD, *VOCAB.code_ids[:2], VOCAB.newline]),
    np.array([0, 25]),
    np.array([0, 26, 27, *encode_grid(np.ones((2, 2), int), VOCAB), 28, VOCAB.boi]),
    np.array(HEAD),
]


@on_goldens("sampling")
def test_tokens_and_scores_equal_the_originals(goldens, vocab):
    for folder in sorted((goldens / "sampling").iterdir()):
        model, _ = load_model(folder / "ckpt")
        with np.load(folder / "full_logits.npz") as stored:
            full = {name: stored[name] for name in stored.files}
        for tag, run in json.loads((folder / "trace.json").read_text()).items():
            check_run(model, vocab, tag, run, full)


def check_run(model, vocab, tag, run, full):
    cfg = golden_config(run)
    plan = {int(step): token for step, token in (run["forced_plan"] or {}).items()}
    tokens, stages = decode.trace(model, np.array(run["prompt"]), KEY, cfg, vocab, plan)
    assert tokens.tolist() == run["generated"], tag
    for expected in run["steps"]:
        step = expected["step"]
        # The original leaves height and width free: there, compare before the rule.
        at_size = any(run["generated"][s] == vocab.boi for s in (step - 1, step - 2) if s >= 0)
        ruled = (stages.guided if at_size else stages.allowed)[step]
        best = np.argsort(-ruled)[: len(expected["top8_ids"])]
        if len(best) > 1:  # The only token allowed scores 0 there; here it keeps its own score.
            np.testing.assert_allclose(ruled[best], expected["top8_vals"], atol=5e-4, rtol=0)
            assert (ruled[best] - ruled[expected["top8_ids"]] < 1e-3).all()
        else:
            assert best.tolist() == expected["top8_ids"]
        np.testing.assert_allclose(
            np.logaddexp.reduce(stages.guided[step], dtype=np.float64), expected["lse_after_cfg"], atol=5e-4
        )
        if not at_size:
            assert np.isfinite(ruled).sum() == expected["n_finite_after_constraint"], (tag, step)
            assert np.flatnonzero(np.isfinite(stages.kept[step])).tolist() == sorted(expected["kept_ids"]), (tag, step)
        stored = {name: full.get(f"{tag}/step{step}/{name}") for name in ("raw", "uncond", "after_cfg")}
        pairs = ((stored["raw"], stages.cond, 2e-4), (stored["uncond"], stages.uncond, 2e-4))
        for theirs, ours, atol in (*pairs, (stored["after_cfg"], stages.guided, 1e-3)):
            if theirs is not None:
                np.testing.assert_allclose(ours[step], theirs, atol=atol, rtol=0, err_msg=f"{tag} step {step}")


def golden_config(run) -> SampleConfig:
    return SampleConfig(
        guidance=run["cfg"],
        temperature=run["temperature"],
        image_top_k=run["image_top_k"],
        text_top_k=run["text_top_k"],
        max_new_tokens=len(run["generated"]),
    )


@on_goldens("sampling")
def test_generate_gives_the_originals_tokens_also_in_a_batch_of_prompts(goldens, vocab):
    folder = goldens / "sampling" / "prenorm"
    model, _ = load_model(folder / "ckpt")
    run = json.loads((folder / "trace.json").read_text())["image2x3_cfg3.0"]
    prompts = [np.array(run["prompt"]), np.array(run["prompt"][:5])]
    answer, _ = generate(model, prompts, KEY, golden_config(run), vocab)
    expected = run["generated"]
    assert answer.tolist() == (
        expected[: expected.index(vocab.end_of_turn)] if vocab.end_of_turn in expected else expected
    )


@pytest.mark.smoke
def test_the_hidden_prompt_equals_a_separate_unconditional_run():
    tokens, stages = decode.trace(MODEL, PROMPTS[0], KEY, SAMPLED, VOCAB)
    sequence = np.concatenate([PROMPTS[0], tokens])
    begins = np.flatnonzero(sequence == VOCAB.boi)
    image = sequence[begins[0] : begins[0] + grid_tokens(4, 2)]
    alone = np.asarray(MODEL.logits(MODEL(jnp.asarray(image)[None])))[0]
    first = len(PROMPTS[0]) - begins[0] - 1
    np.testing.assert_allclose(stages.uncond[: len(image) - first - 1], alone[first:-1], atol=1e-5)
    whole = np.asarray(MODEL.logits(MODEL(jnp.asarray(sequence)[None])))[0]
    np.testing.assert_allclose(stages.cond, whole[len(PROMPTS[0]) - 1 : -1], atol=1e-5)


def test_an_image_opened_in_the_answer_hides_all_before_it():
    size = dict(zip((2, 3, 4, 20, 21, 22), HEAD * 2, strict=True))
    tokens, stages = decode.trace(MODEL, PROMPTS[1], KEY, SAMPLED, VOCAB, size)
    for opened in (2, 20):
        image = tokens[opened : opened + grid_tokens(4, 2)]
        alone = np.asarray(MODEL.logits(MODEL(jnp.asarray(image)[None])))[0]
        np.testing.assert_allclose(stages.uncond[opened + 1 : opened + len(image)], alone[:-1], atol=1e-5)


@pytest.mark.parametrize(
    "cfg", [GREEDY, SAMPLED, replace(SAMPLED, guidance=1.0)], ids=["greedy", "sampled", "unguided"]
)
def test_a_prompt_has_the_same_answer_alone_and_in_a_batch(cfg):
    together = generate(MODEL, PROMPTS, KEY, cfg, VOCAB)
    keys = [jax.random.fold_in(KEY, row) for row in range(len(PROMPTS))]
    if cfg.guidance != 1:
        for row, prompt in enumerate(PROMPTS):
            assert (generate(MODEL, [prompt], KEY, cfg, VOCAB, keys=[keys[row]])[0] == together[row]).all()
    backwards = generate(MODEL, PROMPTS[::-1], KEY, cfg, VOCAB, keys=jnp.stack(keys[::-1]))
    assert all((a == b).all() for a, b in zip(backwards[::-1], together, strict=True))


def test_padding_on_the_left_changes_nothing():
    long = np.concatenate([PROMPTS[1], np.full(40, 23)])
    answers = generate(MODEL, [*PROMPTS[:3], long], KEY, SAMPLED, VOCAB)
    shorter = generate(MODEL, PROMPTS, KEY, SAMPLED, VOCAB)
    assert all((a == b).all() for a, b in zip(answers[:3], shorter[:3], strict=True))


def test_without_guidance_a_prompt_has_one_row_and_the_answer_of_two():
    cfg = replace(SAMPLED, guidance=1.0)
    laid_out = decode.lay_out(PROMPTS, KEY, VOCAB, MODEL.cfg.vocab)
    program = decode.program_key(laid_out.request, cfg)
    answers = []
    for pairs in (False, True):
        ctx, state = decode.start(MODEL, laid_out, cfg, VOCAB, program._replace(pairs=pairs))
        assert state.cache.keys.shape[1] == len(PROMPTS) * (1 + pairs)
        answers.append(decode.decode(ctx, state, decode.NO_LIMIT, len(PROMPTS)).tokens)
    assert not program.pairs and (answers[0] == answers[1]).all()


def test_seeds_choose_the_answer():
    prompts = [PROMPTS[3]] * 4
    first, again = (generate(MODEL, prompts, KEY, SAMPLED, VOCAB) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len({tuple(answer) for answer in first}) == 4
    same = generate(MODEL, prompts, KEY, SAMPLED, VOCAB, keys=[KEY] * 4)
    assert len({tuple(answer) for answer in same}) == 1


def four_times(prompts, cfg, sizes=None) -> list[np.ndarray]:
    """The answers to each prompt under four keys: four calls, so that all tests share a program for four rows."""
    keys = jax.random.split(KEY, 4)
    return [answer for key in keys for answer in generate(MODEL, prompts, key, cfg, VOCAB, sizes=sizes)]


def test_every_image_of_an_answer_is_complete_and_obeys_the_rule():
    answers = four_times(PROMPTS, SAMPLED)
    pieces = [picture.split(np.concatenate([p, a]), VOCAB) for p, a in zip(PROMPTS * 4, answers, strict=True)]
    grids = [[piece for piece in row if isinstance(piece, np.ndarray)] for row in pieces]
    assert max(map(len, grids)) >= 3
    assert len({grid.shape for row in grids for grid in row}) > 3
    assert not any(isinstance(piece, picture.Broken) for row in pieces for piece in row)


def test_forced_sizes_hold_for_every_image_of_their_prompt():
    sizes = [(4, 6), (4, 6), None, (6, 2)]
    prompts = [PROMPTS[1], PROMPTS[1], PROMPTS[1], PROMPTS[2]]
    seen = {size: set() for size in sizes}
    for row, answer in enumerate(four_times(prompts, SAMPLED, sizes)):
        opened = answer if row % 4 < 3 else np.concatenate([[VOCAB.boi], answer])
        seen[sizes[row % 4]] |= {piece.shape for piece in picture.split(opened, VOCAB) if isinstance(piece, np.ndarray)}
    assert len(seen.pop(None)) > 1
    assert seen == {(4, 6): {(4, 6)}, (6, 2): {(6, 2)}}


def test_answers_end_before_end_of_turn_or_after_max_new_tokens():
    answers = four_times(PROMPTS, SAMPLED)
    lengths = np.array([len(answer) for answer in answers])
    assert lengths.min() < 300 and lengths.max() == 300
    assert all(VOCAB.end_of_turn not in answer for answer in answers)
    shorter = four_times(PROMPTS, replace(SAMPLED, max_new_tokens=290))
    assert all((a == b[:290]).all() for a, b in zip(shorter, answers, strict=True))


def test_other_settings_and_prompts_compile_nothing_new():
    generate(MODEL, PROMPTS, KEY, SAMPLED, VOCAB)
    before = decode.decode.jitted()._cache_size()
    other = replace(SAMPLED, guidance=5.0, temperature=0.5, image_top_k=3, text_top_k=2, min_p=0.1, max_new_tokens=297)
    generate(MODEL, [prompt[:1] for prompt in PROMPTS], jax.random.key(9), other, VOCAB)
    assert decode.decode.jitted()._cache_size() == before
    generate(MODEL, PROMPTS, KEY, replace(SAMPLED, guidance=1.0), VOCAB)
    assert decode.decode.jitted()._cache_size() <= before + 1


def test_a_mesh_changes_no_answer():
    expected = generate(MODEL, PROMPTS, KEY, SAMPLED, VOCAB)
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(MODEL, shardings(MODEL, mesh))
        answers = generate(placed, PROMPTS[:3], KEY, SAMPLED, VOCAB)
    assert len(answers) == 3
    assert all((a == b).all() for a, b in zip(answers, expected[:3], strict=True))


def test_lengths_are_rounded_up_by_an_eighth_at_most():
    assert [decode.bucket(n) for n in (1, 32, 33, 256, 257, 1000, 8193)] == [32, 32, 64, 256, 288, 1024, 9216]
    assert all(n <= decode.bucket(n) <= max(n + 31, n * 9 / 8) for n in range(1, 5000))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        ([[]], {}, "prompt 0"),
        ([[0], [0, 40]], {}, "prompt 1 holds id 40, but the model knows ids 0 to 39"),
        ([[-1]], {}, "holds id -1"),
        ([[0, VOCAB.boi, 30]], {}, "prompt 0: the height of the image is token 30"),
        ([[0, *HEAD, VOCAB.newline]], {}, "prompt 0: token 3 of the image is 3"),
        ([[*encode_grid(np.zeros((2, 2), int), VOCAB)[:-1].tolist(), 30]], {}, "no end-image after 9 tokens"),
        ([[0, *HEAD, VOCAB.boi]], {}, "before the one from token 1 has ended"),
        ([[0, *HEAD, VOCAB.eoi, 22]], {}, "takes 16 tokens, but has 4"),
        ([[0]], {"sizes": [(3, 2)]}, "size 0 is 3 x 2 codes"),
        ([[0]], {"sizes": [(2, 9)]}, "from 2 to 6: the nearest is 2 x 6"),
        ([[0, 22, *VOCAB.code_ids[:2]]], {}, "prompt 0: token 2 is the image code 5, but no begin-image"),
        ([[*encode_grid(np.zeros((2, 2), int), VOCAB), 22, 5]], {}, "prompt 0: token 11 is the image code 5"),
        ([[0]], {"sizes": []}, "0 sizes for 1 prompts"),
        ([[0]], {"keys": [KEY, KEY]}, "2 keys for 1 prompts"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_compiled(prompts, options, message):
    before = decode.decode.jitted()._cache_size()
    with pytest.raises(ValueError, match=message):
        generate(MODEL, [np.array(prompt, int) for prompt in prompts], KEY, GREEDY, VOCAB, **options)
    assert decode.decode.jitted()._cache_size() == before


def test_a_tokenizer_with_ids_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        generate(tiny_model(vocab=4), [np.array([0])], KEY, GREEDY, VOCAB)


def test_weights_that_are_not_finite_are_named_before_anything_is_compiled():
    broken, compiled = tiny_model(), decode.prefill.jitted()._cache_size()
    broken.blocks.mlp.up[...] = broken.blocks.mlp.up[...].at[1, 0, 0].set(jnp.nan)
    for sampler in (generate, stream):
        with pytest.raises(FloatingPointError, match=r"mlp.*up.*NaN"):
            sampler(broken, PROMPTS, KEY, SAMPLED, VOCAB)
    assert decode.prefill.jitted()._cache_size() == compiled


def test_logits_that_overflow_are_an_error():
    broken = tiny_model()
    broken.head[...], broken.norm.scale[...] = broken.head[...] * 1e30, broken.norm.scale[...] * 1e20
    with pytest.raises(FloatingPointError, match="they overflow"):
        generate(broken, PROMPTS, KEY, SAMPLED, VOCAB)
