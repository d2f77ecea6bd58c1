"""FP-SFT stage 1 of Lumina-mGPT 7B on v6e-256 (256 chips): 1024 rows of 1,280 tokens a step.

``python run.py train configs/pods/lumina_7b_512_v6e_256.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_512_v6e_256.py --topology v6e:16x16`` shows of one chip:

    HBM GiB of 31.25  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    19.1              0.324       0.041      0.047      0.044 + 0.057 hidden  0.456   50.7%        1088 s
"""

from dataclasses import replace

from configs.lumina_7b_512 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_512_v6e_256",
    data=replace(stage.data, batch=1024),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=256),
)
