"""FP-SFT stage 1 of Lumina-mGPT 34B on v6e-256 (256 chips): 1024 rows of 1,280 tokens a step.

``python run.py train configs/pods/lumina_34b_512_v6e_256.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_34b_512_v6e_256.py --topology v6e:16x16`` shows of one chip:

    HBM GiB of 31.25  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    30.9              1.902       0.152      0.125      0.243 + 0.298 hidden  2.422   47.3%        158 s

It leaves 0.4 GiB of a chip free; ``mesh.remat=qkv`` leaves more, for a slower step.
"""

from dataclasses import replace

from configs.lumina_34b_512 import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_512_v6e_256",
    data=replace(stage.data, batch=1024),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="qkv_out", dropout_rng="local", loss_chunk=256),
)
