"""FP-SFT of Lumina-mGPT 34B at about 768 x 768 pixels, from the 512 stage's weights."""

from dataclasses import replace

from configs.lumina_7b_768 import experiment as lumina_7b
from configs.lumina_34b_512 import experiment as stage_1

experiment = replace(stage_1, name="lumina_34b_768", out="out/lumina_34b_768", start=stage_1.out, data=lumina_7b.data)
