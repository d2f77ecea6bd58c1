"""Omni-SFT of Lumina-mGPT 7B: seventeen kinds of task at about 768 x 768 pixels, up to two pictures a row (paper section 3.3)."""

from dataclasses import replace

from configs.lumina_7b_768 import experiment as stage_2

experiment = replace(
    stage_2,
    name="lumina_7b_omni",
    out="out/lumina_7b_omni",
    start=stage_2.out,
    data=replace(stage_2.data, buckets=(2560, 5120), batch=256),
)
