"""FP-SFT stage 1 of Lumina-mGPT 7B on v5p-128 (64 chips): 832 rows of 1,280 tokens a step.

``python run.py train configs/pods/lumina_7b_512_v5p_128.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_512_v5p_128.py --topology v5p:4x4x4`` shows of one chip:

    HBM GiB of 95.74  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    54.6              1.541       0.058      0.111      0.033 + 0.038 hidden  1.744   86.2%        122 s
"""

from dataclasses import replace

from configs.lumina_7b_512 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_512_v5p_128",
    data=replace(stage.data, batch=832),
    mesh=replace(stage.mesh, replica=4, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=256),
)
