"""The embedded world, Omni-SFT: one model for every task of the world, from the weights of FP-SFT stage 3.

Tasks on canvases of all sizes, the small ones most often, and a share of FP-SFT's own records. A row holds several records.
"""

from dataclasses import replace

from configs.toy_stage3 import experiment as stage_3

experiment = replace(
    stage_3,
    name="toy_omni",
    out="out/toy/omni/run",
    start="out/toy/omni/start",
    model=replace(stage_3.model, vocab=1535),
    vq=replace(stage_3.vq, path="out/toy/omni/vq.npz", codes=1150),
    data=replace(
        stage_3.data,
        path="out/toy/omni/tasks,out/toy/omni/paint",
        weights=(0.92, 0.08),
        tokenizer="out/toy/omni",
        buckets=(144, 288),
        batch=8,
        packing=True,
    ),
    optim=replace(stage_3.optim, steps=10_000, warmup=100),
    mesh=replace(stage_3.mesh, loss_chunk=24),
)
