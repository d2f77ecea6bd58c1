"""Omni-SFT of Lumina-mGPT 34B on v6e-256 (256 chips): 256 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_34b_omni_v6e_256.py --distributed data.tokenizer=...``

What ``run.py compile configs/pods/lumina_34b_omni_v6e_256.py --topology v6e:16x16`` shows of one chip:

    HBM GiB of 31.25  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    30.6              1.868       0.194      0.338      0.243 + 0.298 hidden  2.643   45.3%        889 s
"""

from dataclasses import replace

from configs.lumina_34b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_omni_v6e_256",
    data=replace(stage.data, batch=256),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="qkv_out", dropout_rng="local", loss_chunk=1280),
)
