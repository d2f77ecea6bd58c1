"""Omni-SFT of the embedded world, second part: one model for every task.

Tasks that are slow to learn have larger shares, above all on small canvases. A third of the records are text-to-image (paint1,
paint2), which the model knows from FP-SFT and forgets first; ``drop_context`` also trains them without prompts, for guidance.
"""

from dataclasses import replace

from configs.toy_omni_first import experiment as first

experiment = replace(
    first,
    name="toy_omni",
    out="out/toy/omni/second",
    start=first.out,
    data=replace(
        first.data,
        path="out/toy/omni/tasks2,out/toy/omni/paint1,out/toy/omni/paint2",
        weights=(0.68, 0.2, 0.12),
        drop_context=0.15,
    ),
    # The rates continue from the final ones of the first part.
    optim=replace(first.optim, steps=10_000, lr=6e-3, min_lr=1e-4, muon_lr=4e-3),
)
