"""FP-SFT stage 2 of Lumina-mGPT 7B on v5p-128 (64 chips): 384 rows of 2,560 tokens a step.

``python run.py train configs/pods/lumina_7b_768_v5p_128.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_768_v5p_128.py --topology v5p:4x4x4`` shows of one chip:

    HBM GiB of 95.74  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    49.4              1.420       0.055      0.158      0.033 + 0.038 hidden  1.666   85.3%        718 s
"""

from dataclasses import replace

from configs.lumina_7b_768 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_768_v5p_128",
    data=replace(stage.data, batch=384),
    mesh=replace(stage.mesh, replica=4, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=256),
)
