"""FP-SFT of Lumina-mGPT 34B at about 1024 x 1024 pixels, from the 768 stage's weights."""

from dataclasses import replace

from configs.lumina_7b_1024 import experiment as small
from configs.lumina_34b_768 import experiment as before

experiment = replace(before, name="lumina_34b_1024", out="out/lumina_34b_1024", start=before.out, data=small.data)
