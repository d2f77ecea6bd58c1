"""FP-SFT stage 2 of Lumina-mGPT 7B: pictures of about 768 x 768 pixels, 2,357 tokens each, from stage 1's weights."""

from dataclasses import replace

from configs.lumina_7b_512 import experiment as stage_1
from configs.lumina_7b_512 import folders

experiment = replace(
    stage_1,
    name="lumina_7b_768",
    out="out/lumina_7b_768",
    start=stage_1.out,
    data=replace(stage_1.data, path=folders(768), size=768, buckets=(2304, 2432, 2560, 4864, 5120), batch=128),
)
