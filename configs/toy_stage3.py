"""FP-SFT stage 3 of the embedded world: pictures of about 128 x 128 pixels, 64 codes, at eleven aspect ratios up to 4."""

from dataclasses import replace

from configs.toy_stage2 import experiment as stage_2

experiment = replace(
    stage_2,
    name="toy_stage3",
    out="out/toy/stage3",
    start=stage_2.out,
    data=replace(stage_2.data, path="out/toy/data128", size=128, buckets=(68, 84, 107)),
    optim=replace(stage_2.optim, steps=4800),
)
