"""Lumina-mGPT on TPU pods: each stage of configs/lumina_*.py with batch, mesh and recomputation for a slice of each chip.

``python run.py train configs/pods.py:lumina_7b_512_v5p_128 --distributed data.path=... data.tokenizer=...``

lumina_jax/pods/compiled.json holds what ``run.py compile`` estimates for each; tests/bench/tpu_compile.py measures it again.
"""

import itertools
from dataclasses import replace

from configs.lumina_7b_512 import experiment as lumina_7b_512
from configs.lumina_7b_768 import experiment as lumina_7b_768
from configs.lumina_7b_1024 import experiment as lumina_7b_1024
from configs.lumina_7b_omni import experiment as lumina_7b_omni
from configs.lumina_34b_512 import experiment as lumina_34b_512
from configs.lumina_34b_768 import experiment as lumina_34b_768
from configs.lumina_34b_1024 import experiment as lumina_34b_1024
from configs.lumina_34b_omni import experiment as lumina_34b_omni
from lumina_jax.config import Experiment

TOPOLOGIES = {
    "v5p_128": "v5p:4x4x4",
    "v5e_256": "v5e:16x16",
    "v4_128": "v4:4x4x4",
    "v6e_256": "v6e:16x16",
    "v5p_512": "v5p:4x8x8",
    "tpu7x_128": "tpu7x:4x4x4",
    "tpu7x_512": "tpu7x:4x8x8",
    "tpu7x_1024": "tpu7x:8x8x8",
}
"""Name of a slice in TABLE -> ``--topology`` of run.py compile."""

# fmt: off
TABLE = (
    # stage, slice, batch, replica, fsdp, tensor, remat, loss_chunk
    (lumina_7b_512,   "v5p_128",  64,  4, 16, 1, "matmuls", 640),
    (lumina_7b_768,   "v5p_128", 128,  4, 16, 1, "matmuls", 640),
    (lumina_7b_1024,  "v5p_128", 256,  4, 16, 1, "matmuls", 256),
    (lumina_7b_omni,  "v5p_128", 256,  4, 16, 1, "matmuls", 256),
    (lumina_7b_512,   "v5e_256", 256,  4, 64, 1, "qkv_out_gate", 640),
    (lumina_7b_768,   "v5e_256", 256,  4, 64, 1, "qkv_out_gate", 640),
    (lumina_7b_1024,  "v5e_256", 256,  4, 64, 1, "qkv_out_gate", 640),
    (lumina_7b_omni,  "v5e_256", 256,  4, 64, 1, "qkv_out_gate", 640),
    (lumina_7b_512,   "v4_128",   64,  4, 16, 1, "qkv",     640),
    (lumina_7b_768,   "v4_128",  128,  4, 16, 1, "qkv",     256),
    (lumina_7b_1024,  "v4_128",  192,  4, 16, 1, "qkv",     256),
    (lumina_7b_omni,  "v4_128",  192,  4, 16, 1, "qkv",     256),
    (lumina_7b_512,   "v6e_256", 256, 16, 16, 1, "matmuls", 640),
    (lumina_7b_768,   "v6e_256", 256, 16, 16, 1, "matmuls", 640),
    (lumina_7b_1024,  "v6e_256", 256, 16, 16, 1, "matmuls", 640),
    (lumina_7b_omni,  "v6e_256", 256, 16, 16, 1, "matmuls", 640),
    (lumina_34b_512,  "v5p_512", 256, 16, 16, 1, "matmuls", 640),
    (lumina_34b_768,  "v5p_512", 256, 16, 16, 1, "matmuls", 640),
    (lumina_34b_1024, "v5p_512", 256, 16, 16, 1, "matmuls", 640),
    (lumina_34b_omni, "v5p_512", 256, 16, 16, 1, "matmuls", 640),
    (lumina_34b_512,  "v6e_256", 256, 16, 16, 1, "qkv_out", 640),
    (lumina_34b_768,  "v6e_256", 256, 16, 16, 1, "qkv_out", 640),
    (lumina_34b_1024, "v6e_256", 256, 16, 16, 1, "qkv_out", 640),
    (lumina_34b_omni, "v6e_256", 256, 16, 16, 1, "qkv_out", 640),
    (lumina_7b_512,   "tpu7x_128",   128,  8, 16, 1, "matmuls", 640),
    (lumina_7b_768,   "tpu7x_128",   128,  8, 16, 1, "matmuls", 640),
    (lumina_7b_1024,  "tpu7x_128",   256,  8, 16, 1, "matmuls", 640),
    (lumina_7b_omni,  "tpu7x_128",   256,  8, 16, 1, "matmuls", 640),
    (lumina_7b_512,   "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_7b_768,   "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_7b_1024,  "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_7b_omni,  "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_7b_512,   "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_7b_768,   "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_7b_1024,  "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_7b_omni,  "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_34b_512,  "tpu7x_128",   128,  8, 16, 1, "matmuls", 640),
    (lumina_34b_768,  "tpu7x_128",   128,  8, 16, 1, "matmuls", 640),
    (lumina_34b_1024, "tpu7x_128",   256,  8, 16, 1, "qkv_out_gate", 640),
    (lumina_34b_omni, "tpu7x_128",   256,  8, 16, 1, "qkv_out_gate", 640),
    (lumina_34b_512,  "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_34b_768,  "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_34b_1024, "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_34b_omni, "tpu7x_512",   512, 32, 16, 1, "matmuls", 640),
    (lumina_34b_512,  "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_34b_768,  "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_34b_1024, "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
    (lumina_34b_omni, "tpu7x_1024", 1024, 64, 16, 1, "matmuls", 640),
)
# fmt: on
"""One row per config. ``batch`` counts rows of the longest bucket, 5,120 tokens, over all chips; ``remat`` and ``loss_chunk`` as in
MeshConfig. The mesh is one of devices: a chip each, but two a chip on tpu7x, whose slices are named by their number of devices.

Slices of 64 chips have the published batch, about 256 samples a step, or as near as fits. Every device must have a row, so those
of 256 devices have four times that at 512 px and twice at 768 px, and larger ones more: an epoch has fewer steps, and
``optim.steps`` and ``optim.warmup`` want to be set by it. On tpu7x the 16 devices of mesh.fsdp, which gather weights layer by
layer, are one of each chip of a 4 x 4 plane of the torus, or both of each chip of a ring of 8. On v5e they are 64, along both axes
of the torus: gradients in 64 parts leave room to keep what 16 would compute again, and gathers use all links.
"""


def _on_slice(stage: Experiment, slice_name: str, batch: int, *mesh: int | str) -> Experiment:
    fields = dict(zip(("replica", "fsdp", "tensor", "remat", "loss_chunk"), mesh, strict=True), dropout_rng="local")
    data, mesh = replace(stage.data, batch=batch), replace(stage.mesh, **fields)
    return replace(stage, name=f"{stage.name}_{slice_name}", data=data, mesh=mesh)


experiments = {cfg.name: cfg for cfg in itertools.starmap(_on_slice, TABLE)}
