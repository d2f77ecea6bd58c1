"""lumina_jax's model, loaded from Meta's files, computes the logits of Meta's code, in one pass and with a cache."""

import jax.numpy as jnp
import numpy as np
import pytest
from goldens_at import golden_roots

pytest.importorskip("torch")

from convert import load_model

GOLDENS = sorted({folder for root in golden_roots("meta") for folder in (root / "meta").glob("*b") if folder.is_dir()})
TOLERANCE = dict(atol=2e-4, rtol=0)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda folder: folder.name)
def test_logits_are_those_of_meta_s_code(golden):
    model, _ = load_model(golden, dtype="float32")
    with np.load(golden / "meta_logits.npz") as recorded:
        for row in range(2):
            ids = recorded[f"tokens_seq{row}"][None]
            np.testing.assert_allclose(
                model.logits(model(jnp.asarray(ids)))[0], recorded[f"logits_seq{row}"], **TOLERANCE
            )
            cache = model.empty_cache(1, ids.shape[1] + 1)
            _, cache = model.cached(jnp.asarray(ids), cache)
            hidden, _ = model.cached(jnp.asarray(recorded["next_tokens"])[row][None, None], cache)
            np.testing.assert_allclose(model.logits(hidden)[0, 0], recorded["decode_logits"][row], **TOLERANCE)
