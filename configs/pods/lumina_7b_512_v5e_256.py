"""FP-SFT stage 1 of Lumina-mGPT 7B on v5litepod-256 (256 chips): 1024 rows of 1,280 tokens a step.

``python run.py train configs/pods/lumina_7b_512_v5e_256.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_512_v5e_256.py --topology 2 x v5e:16x16`` shows of one chip:

    HBM GiB of 15.75  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    12.3              1.276       0.066      0.084      0.105 + 0.116 hidden  1.532   70.4%        1210 s
"""

from dataclasses import replace

from configs.lumina_7b_512 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_512_v5e_256",
    data=replace(stage.data, batch=1024),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="qkv_out", dropout_rng="local", loss_chunk=256),
)
