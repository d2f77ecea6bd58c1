"""Omni-SFT of the embedded world, fourth part: as the third, with more questions whose pictures come behind the words.

The first two parts of the committed model saw pictures in front of questions; 4,000 steps more make up for it.
"""

from dataclasses import replace

from configs.toy_omni_dialogs import experiment as third

experiment = replace(
    third,
    name="toy_omni_questions",
    out="out/toy/omni/questions",
    start=third.out,
    data=replace(third.data, path="out/toy/omni/tasks4,out/toy/omni/paint3", weights=(0.68, 0.32)),
    optim=replace(third.optim, steps=4_000, lr=3e-3, muon_lr=2e-3),
)
