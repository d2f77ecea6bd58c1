"""FP-SFT stage 1 of Lumina-mGPT 7B: pictures of about 512 x 512 pixels, 1,061 tokens each (paper section 3.2.2).

Rates, decay, dropout, z-loss, batch and warm-up follow the published 7B run (xllmx exps/7B.sh, on 32 GPUs):
``python run.py train configs/lumina_7b_512.py start=... data.tokenizer=...``

It has 8 samples on each of 32 GPUs, 256 a step, and warms up for 0.01 of 2 epochs. Here a step has the same number of tokens in
every bucket: 64 rows of 5,120 tokens, or 128 of 2,304, hold 270 samples of the mixture on average (``tests/bench/data_plan.py``;
stage 2: 279, stage 3: 282). 40,000 steps are two epochs of 5.4 million records. With another number set ``optim.steps`` to two
epochs (``run.py data inspect`` prints the steps of one) and ``optim.warmup`` to a two-hundredth of it.
"""

from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig, VQConfig

STEPS = 40_000
MIX = {
    "pairs": 0.75,  # pictures with captions: text to image
    "understanding": 0.15,  # Mini-Gemini: questions about pictures
    "text": 0.10,  # OpenHermes-2.5
}
"""Folder below tokens/ -> share of an epoch's records. The paper names the sets but not their shares; these are our choice.

To train on other folders set data.path and data.weights together; a single folder needs no weights.
"""


def folders(size: int) -> str:
    """The folders of the mixture at ``size`` px, for data.path."""
    return ",".join(f"tokens/{folder}/{size}" for folder in MIX)


experiment = Experiment(
    name="lumina_7b_512",
    out="out/lumina_7b_512",
    model=ModelConfig(),
    vq=VQConfig(kind="vqgan", codes=8192, embed=256, latent=256, base=128, multipliers=(1, 1, 2, 2, 4), res_blocks=2),
    data=DataConfig(
        path=folders(512),
        weights=tuple(MIX.values()),
        size=512,
        buckets=(1152, 2176, 2304, 2432, 2560, 5120),
        batch=64,
    ),
    optim=OptimConfig(steps=STEPS, lr=2e-5, min_lr=2e-5, warmup=STEPS // 200, weight_decay=0.1, clip=4.0, z_loss=1e-5),
    mesh=MeshConfig(replica=1, fsdp=-1, tensor=1, compute="bfloat16", remat="block"),
)
