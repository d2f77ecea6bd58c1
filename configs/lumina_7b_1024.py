"""FP-SFT stage 3 of Lumina-mGPT 7B: pictures of about 1024 x 1024 pixels, 4,164 to 4,228 tokens each, from stage 2's weights."""

from dataclasses import replace

from configs.lumina_7b_512 import folders
from configs.lumina_7b_768 import experiment as stage_2

experiment = replace(
    stage_2,
    name="lumina_7b_1024",
    out="out/lumina_7b_1024",
    start=stage_2.out,
    data=replace(stage_2.data, path=folders(1024), size=1024, buckets=(4096, 4224, 4352, 4480, 4608, 5120), batch=256),
)
