"""The embedded world, Omni-SFT, its last part: one model for every task. A third of what it sees is painted from text.

Text to image is what this model knew before, and what it forgets first; guidance needs the pictures without a prompt as well.
"""

from dataclasses import replace

from configs.toy_omni_second import experiment as second

experiment = replace(
    second,
    name="toy_omni",
    out="out/toy/omni/third",
    start=second.out,
    data=replace(
        second.data,
        path="out/toy/omni/tasks2,out/toy/omni/paint1,out/toy/omni/paint2",
        weights=(0.66, 0.22, 0.12),
        drop_context=0.15,
    ),
    optim=replace(second.optim, steps=5000, lr=4e-3, min_lr=2e-4, hold=0.1),
)
