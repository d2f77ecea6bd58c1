"""FP-SFT stage 2 of Lumina-mGPT 34B on v5p-512 (256 chips): 512 rows of 2,560 tokens a step.

``python run.py train configs/pods/lumina_34b_768_v5p_512.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_34b_768_v5p_512.py --topology v5p:4x8x8`` shows of one chip:

    HBM GiB of 95.74  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    52.0              2.418       0.093      0.149      0.165 + 0.197 hidden  2.825   82.3%        687 s
"""

from dataclasses import replace

from configs.lumina_34b_768 import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_768_v5p_512",
    data=replace(stage.data, batch=512),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=640),
)
