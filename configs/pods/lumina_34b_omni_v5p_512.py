"""Omni-SFT of Lumina-mGPT 34B on v5p-512 (256 chips): 256 rows of 5,120 tokens a step.

``python run.py train configs/pods/lumina_34b_omni_v5p_512.py --distributed data.path=... data.tokenizer=...``

Not compiled yet: ``run.py compile configs/pods/lumina_34b_omni_v5p_512.py --topology v5p:4x8x8`` tells whether it fits.
"""

from dataclasses import replace

from configs.lumina_34b_omni import experiment as stage

experiment = replace(
    stage,
    name="lumina_34b_omni_v5p_512",
    data=replace(stage.data, batch=256),
    mesh=replace(stage.mesh, replica=16, fsdp=16, remat="matmuls", dropout_rng="local", loss_chunk=1280),
)
