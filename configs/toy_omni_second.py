"""The embedded world, Omni-SFT, its second part: what is slow to learn comes more often, on small canvases above all."""

from dataclasses import replace

from configs.toy_omni_first import experiment as first

experiment = replace(
    first,
    name="toy_omni_second",
    out="out/toy/omni/second",
    start=first.out,
    data=replace(first.data, path="out/toy/omni/tasks2,out/toy/omni/paint2", weights=()),
    # A fall from 5e-3, broken off where the third part begins.
    optim=replace(first.optim, steps=2000, lr=5e-3, min_lr=3.9e-3, hold=0.515),
)
