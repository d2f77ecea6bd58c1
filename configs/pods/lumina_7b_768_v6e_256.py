"""FP-SFT stage 2 of Lumina-mGPT 7B on v6e-256 (256 chips): 512 rows of 2,560 tokens a step.

``python run.py train configs/pods/lumina_7b_768_v6e_256.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_7b_768_v6e_256.py --topology v6e:16x16`` shows of one chip:

    HBM GiB of 31.25  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    19.1              0.326       0.042      0.071      0.044 + 0.057 hidden  0.483   49.1%        846 s
"""

from dataclasses import replace

from configs.lumina_7b_768 import experiment as stage

experiment = replace(
    stage,
    name="lumina_7b_768_v6e_256",
    data=replace(stage.data, batch=512),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=640),
)
