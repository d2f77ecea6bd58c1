"""Omni-SFT of Lumina-mGPT 7B on v5litepod-256 (256 chips): 256 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_7b_omni_v5e_256.py --distributed data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_omni_v5e_256.py --topology v5e:16x16`` shows of one chip:

    HBM GiB of 15.75  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    12.2              1.266       0.081      0.203      0.101 + 0.114 hidden  1.651   70.1%        1706 s
"""

from dataclasses import replace

from configs.lumina_7b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_omni_v5e_256",
    data=replace(stage.data, batch=256),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="qkv_out", dropout_rng="local", loss_chunk=1280),
)
