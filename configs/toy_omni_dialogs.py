"""Omni-SFT of the embedded world, third part: dialogs that go from one task to another (paper Figures 12 and 13).

The mix is the second part's with scripts and comparisons added, so no task is forgotten; text-to-image keeps its third.
"""

from dataclasses import replace

from configs.toy_omni import experiment as second

experiment = replace(
    second,
    name="toy_omni_dialogs",
    out="out/toy/omni/dialogs",
    start=second.out,
    data=replace(
        second.data,
        path="out/toy/omni/tasks3,out/toy/omni/paint3",
        weights=(0.72, 0.28),
    ),
    # Weights that have learned another order of questions and pictures need rates as high as the second part's.
    optim=replace(second.optim, steps=20_000),
)
