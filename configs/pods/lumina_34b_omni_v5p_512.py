"""Omni-SFT of Lumina-mGPT 34B on v5p-512 (256 chips): 256 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_34b_omni_v5p_512.py --distributed data.tokenizer=...``

What ``run.py compile configs/pods/lumina_34b_omni_v5p_512.py --topology v5p:4x8x8`` shows of one chip:

    HBM GiB of 95.74  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    52.0              2.407       0.114      0.259      0.162 + 0.200 hidden  2.941   81.4%        648 s
"""

from dataclasses import replace

from configs.lumina_34b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_omni_v5p_512",
    data=replace(stage.data, batch=256),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=1280),
)
