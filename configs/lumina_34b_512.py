"""FP-SFT stage 1 of Lumina-mGPT 34B: post-norm blocks, 8 key/value heads, 4 QK-norm groups (paper section 3.1).

Without dropout, which the paper has for the 7B model alone (section 3.2.2).
"""

from dataclasses import replace

from configs.lumina_7b_512 import experiment as lumina_7b_512
from lumina_jax.config import ModelConfig

experiment = replace(
    lumina_7b_512,
    name="lumina_34b_512",
    out="out/lumina_34b_512",
    model=ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True, dropout=0.0),
)
