"""The embedded world, Omni-SFT, its second part: one model for every task.

What is slow to learn comes more often, on small canvases above all. A third of what it sees is painted from text, which it
knew before and forgets first; guidance needs the pictures without a prompt as well.
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
    # The rate falls on from where the first part left it.
    optim=replace(first.optim, steps=10_000, lr=6e-3, min_lr=1e-4, muon_lr=4e-3),
)
