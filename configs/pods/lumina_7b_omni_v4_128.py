"""Omni-SFT of Lumina-mGPT 7B on v4-128 (64 chips): 192 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_7b_omni_v4_128.py --distributed data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_omni_v4_128.py --topology v4:4x4x4`` shows of one chip:

    HBM GiB of 30.75  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    27.9              3.534       0.114      0.456      0.060 + 0.082 hidden  4.164   59.7%        376 s
"""

from dataclasses import replace

from configs.lumina_7b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_omni_v4_128",
    data=replace(stage.data, batch=192),
    mesh=replace(stage.mesh, replica=4, fsdp=16, remat="qkv", dropout_rng="local", loss_chunk=256),
)
