"""Omni-SFT of the embedded world, first part: every task, from the weights of FP-SFT stage 3.

Canvases of all sizes, small ones most often, mixed with the text-to-image records of FP-SFT. Rows are packed.
"""

from dataclasses import replace

from configs.toy_stage3 import experiment as stage_3

experiment = replace(
    stage_3,
    name="toy_omni_first",
    out="out/toy/omni/first",
    start="out/toy/omni/start",
    model=replace(stage_3.model, vocab=1538),
    vq=replace(stage_3.vq, path="out/toy/omni/vq.npz", codes=1150),
    data=replace(
        stage_3.data,
        path="out/toy/omni/tasks1,out/toy/omni/paint1",
        weights=(0.85, 0.15),
        tokenizer="out/toy/omni",
        buckets=(144, 288),
        batch=8,
        packing=True,
    ),
    optim=replace(stage_3.optim, steps=10_000, lr=1.2e-2, min_lr=6e-3, muon_lr=8e-3, warmup=100, hold=0.0),
    mesh=replace(stage_3.mesh, loss_chunk=24),
)
