"""FP-SFT stage 1 of Lumina-mGPT 7B: pictures of about 512 x 512 pixels, 1,061 tokens each (paper section 3.2.2).

Rates, decay, dropout, z-loss and batch follow the published 7B run (xllmx exps/7B.sh):
``python run.py train configs/lumina_7b_512.py data.path=... data.tokenizer=... vq.path=...``
"""

from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig, VQConfig

experiment = Experiment(
    name="lumina_7b_512",
    out="out/lumina_7b_512",
    model=ModelConfig(),
    vq=VQConfig(kind="vqgan", codes=8192, embed=256, latent=256, base=128, multipliers=(1, 1, 2, 2, 4), res_blocks=2),
    data=DataConfig(size=512, buckets=(1152, 1280), batch=512),
    optim=OptimConfig(steps=40_000, lr=2e-5, min_lr=2e-5, warmup=400, weight_decay=0.1, clip=4.0, z_loss=1e-5),
    mesh=MeshConfig(replica=1, fsdp=-1, tensor=1, compute="bfloat16", remat="block"),
)
