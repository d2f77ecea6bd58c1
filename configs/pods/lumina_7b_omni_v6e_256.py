"""Omni-SFT of Lumina-mGPT 7B on v6e-256 (256 chips): 256 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_7b_omni_v6e_256.py --distributed data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_omni_v6e_256.py --topology v6e:16x16`` shows of one chip:

    HBM GiB of 31.25  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    19.1              0.296       0.062      0.118      0.044 + 0.057 hidden  0.519   47.8%        1674 s
"""

from dataclasses import replace

from configs.lumina_7b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_omni_v6e_256",
    data=replace(stage.data, batch=256),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=1280),
)
