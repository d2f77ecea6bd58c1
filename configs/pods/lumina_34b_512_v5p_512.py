"""FP-SFT stage 1 of Lumina-mGPT 34B on v5p-512 (256 chips): 1024 rows of 1,280 tokens a step.

``python run.py train configs/pods/lumina_34b_512_v5p_512.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_34b_512_v5p_512.py --topology v5p:4x8x8`` shows of one chip:

    HBM GiB of 95.74  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    51.9              2.414       0.089      0.094      0.165 + 0.197 hidden  2.761   83.0%        169 s
"""

from dataclasses import replace

from configs.lumina_34b_512 import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_512_v5p_512",
    data=replace(stage.data, batch=1024),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=256),
)
