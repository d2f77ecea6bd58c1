"""Omni-SFT of Lumina-mGPT 34B: seventeen kinds of task at about 768 x 768 pixels, up to two pictures a row (paper section 3.2.3).

The mixture is that of the 7B model.
"""

from dataclasses import replace

from configs.lumina_7b_omni import experiment as omni
from configs.lumina_34b_768 import experiment as stage_2

experiment = replace(
    stage_2,
    name="lumina_34b_omni",
    out="out/lumina_34b_omni",
    start=stage_2.out,
    data=replace(stage_2.data, path=omni.data.path, weights=omni.data.weights, buckets=(2560, 5120), batch=256),
)
