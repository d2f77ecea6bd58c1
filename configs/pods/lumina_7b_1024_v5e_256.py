"""FP-SFT stage 3 of Lumina-mGPT 7B on v5litepod-256 (256 chips): 256 rows of 4,608 tokens a step.

``python run.py train configs/pods/lumina_7b_1024_v5e_256.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_1024_v5e_256.py --topology v5e:16x16`` shows of one chip:

    HBM GiB of 15.75  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    11.4              1.191       0.073      0.174      0.101 + 0.114 hidden  1.539   67.0%        308 s
"""

from dataclasses import replace

from configs.lumina_7b_1024 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_1024_v5e_256",
    data=replace(stage.data, batch=256),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="qkv_out", dropout_rng="local", loss_chunk=256),
)
