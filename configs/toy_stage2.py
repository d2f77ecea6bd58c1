"""FP-SFT stage 2 of the embedded world: pictures of about 96 x 96 pixels, 36 codes, from stage 1's weights."""

from dataclasses import replace

from configs.toy_stage1 import experiment as stage_1

experiment = replace(
    stage_1,
    name="toy_stage2",
    out="out/toy/stage2",
    start=stage_1.out,
    data=replace(stage_1.data, path="out/toy/data96", size=96, buckets=(50, 60, 68)),
    optim=replace(stage_1.optim, steps=1200, lr=1.1e-2, min_lr=5.5e-4, muon_lr=7.5e-3),
)
