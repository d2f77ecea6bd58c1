"""An experiment that the TPU compiler takes seconds for."""

from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, VQConfig

TINY = Experiment(
    name="tiny",
    model=ModelConfig(vocab=512, width=256, layers=2, heads=2, kv_heads=2, head_dim=128, mlp=256),
    vq=VQConfig(codes=64),
    data=DataConfig(buckets=(256,), batch=8),
    mesh=MeshConfig(loss_chunk=128),
)
