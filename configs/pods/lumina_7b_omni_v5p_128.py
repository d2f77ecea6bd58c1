"""Omni-SFT of Lumina-mGPT 7B on v5p-128 (64 chips): 192 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_7b_omni_v5p_128.py --distributed data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_omni_v5p_128.py --topology v5p:4x4x4`` shows of one chip:

    HBM GiB of 95.74  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    49.5              1.429       0.076      0.268      0.033 + 0.038 hidden  1.806   82.5%        1016 s
"""

from dataclasses import replace

from configs.lumina_7b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_omni_v5p_128",
    data=replace(stage.data, batch=192),
    mesh=replace(stage.mesh, replica=4, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=256),
)
