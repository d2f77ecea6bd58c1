"""Omni-SFT of the embedded world, third part: dialogs that go from one task to another (paper Figures 12 and 13).

The mix is the second part's with scripts and comparisons added, so no task is forgotten; text-to-image keeps its share.
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
    # Where a prompt leaves something open, the likelihoods with and without it differ by chance alone. Guidance multiplies that
    # difference: at 4 it makes one of many right pictures certain, so all copies of a prompt are equal; at 1.2 they differ, and
    # nearly as many are right (tests/bench/variety.py). The stages of FP-SFT, trained for minutes, still need 4.
    sample=replace(second.sample, guidance=1.2),
    # Weights that have learned another order of questions and pictures need rates as high as the second part's.
    optim=replace(second.optim, steps=20_000),
)
