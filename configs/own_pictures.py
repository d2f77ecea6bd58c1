"""A folder of your own pictures on a laptop: about 256 x 256 pixels, a patch codebook, a small model from random weights."""

from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig, SampleConfig, VQConfig

experiment = Experiment(
    name="own_pictures",
    out="out/own/run",
    save_every=100,
    model=ModelConfig(vocab=5120, width=128, layers=4, heads=4, kv_heads=4, head_dim=32, mlp=384, dropout=0.0),
    vq=VQConfig(kind="patch", path="out/own/vq.npz", codes=4096),
    data=DataConfig(path="out/own/data", tokenizer="out/own", size=256, buckets=(320, 384), batch=4, packing=False),
    optim=OptimConfig(
        steps=300,
        lr=2e-3,
        min_lr=1e-4,
        warmup=40,
        hold=0.3,
        decay="linear",
        weight_decay=0.01,
        clip=1.0,
        loss_weight="tokens",
    ),
    mesh=MeshConfig(replica=1, fsdp=-1, compute="float32", remat="none", unroll=4),
    sample=SampleConfig(guidance=1.0, image_top_k=1, text_top_k=1),
)
