"""FP-SFT of Lumina-mGPT 34B at about 1024 x 1024 pixels, from the 768 stage's weights."""

from dataclasses import replace

from configs.lumina_7b_1024 import experiment as lumina_7b
from configs.lumina_34b_768 import experiment as stage_2

experiment = replace(stage_2, name="lumina_34b_1024", out="out/lumina_34b_1024", start=stage_2.out, data=lumina_7b.data)
