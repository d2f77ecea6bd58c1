"""FP-SFT stage 1 of the embedded world: pictures of about 64 x 64 pixels, 16 codes of 16 x 16 pixels each.

The code path is that of the 7B model on a pod; only the numbers are smaller. ``python run.py quickstart`` runs all three stages.
"""

from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig, SampleConfig, VQConfig

experiment = Experiment(
    name="toy_stage1",
    out="out/toy/stage1",
    save_every=250,
    model=ModelConfig(vocab=663, width=64, layers=4, heads=2, kv_heads=2, head_dim=32, mlp=192, dropout=0.0),
    vq=VQConfig(kind="patch", path="out/toy/vq.npz", codes=326),
    data=DataConfig(path="out/toy/data64", tokenizer="out/toy", size=64, buckets=(42, 50), batch=16, packing=False),
    # Muon for the matrices: after so few steps more than twice as many pictures are right as with AdamW (tests/bench/optimizer.py).
    optim=OptimConfig(
        steps=3000,
        lr=1.5e-2,
        min_lr=7.5e-4,
        muon_lr=1e-2,
        warmup=60,
        hold=0.3,
        decay="linear",
        clip=1.0,
        loss_weight="tokens",
    ),
    mesh=MeshConfig(replica=-1, fsdp=1, compute="float32", remat="none", unroll=4),
    # A model this small samples fastest with one token a pass.
    sample=SampleConfig(guidance=4.0, min_p=0.1, max_new_tokens=512, parallel="off"),
)
