"""FP-SFT stage 2 of Lumina-mGPT 34B on v6e-256 (256 chips): 512 rows of 2,560 tokens a step.

``python run.py train configs/pods/lumina_34b_768_v6e_256.py --distributed data.path=... data.tokenizer=...``

What ``run.py compile configs/pods/lumina_34b_768_v6e_256.py --topology v6e:16x16`` shows of one chip:

    HBM GiB of 31.25  products s  traffic s  kernels s  collectives s         step s  MFU at most  compiled in
    30.9              1.899       0.158      0.196      0.243 + 0.298 hidden  2.496   46.6%        386 s

It leaves 0.4 GiB of a chip free; ``mesh.remat=qkv`` leaves more, for a slower step.
"""

from dataclasses import replace

from configs.lumina_34b_768 import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_768_v6e_256",
    data=replace(stage.data, batch=512),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="qkv_out", dropout_rng="local", loss_chunk=640),
)
