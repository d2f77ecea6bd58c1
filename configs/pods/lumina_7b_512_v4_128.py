"""FP-SFT stage 1 of Lumina-mGPT 7B on v4-128 (64 chips): 768 rows of 1,280 tokens a step.

``python run.py train configs/pods/lumina_7b_512_v4_128.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_512_v4_128.py --topology v4:4x4x4`` shows of one chip:

    HBM GiB of 30.75  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    26.8              3.195       0.090      0.185      0.060 + 0.082 hidden  3.529   65.6%        96 s
"""

from dataclasses import replace

from configs.lumina_7b_512 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_512_v4_128",
    data=replace(stage.data, batch=768),
    mesh=replace(stage.mesh, replica=4, fsdp=16, remat="qkv", dropout_rng="local", loss_chunk=256),
)
