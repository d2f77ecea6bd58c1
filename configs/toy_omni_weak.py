"""Omni-SFT of the embedded world, fifth part: more of the tasks that were weakest behind the fourth, at lower rates."""

from dataclasses import replace

from configs.toy_omni_questions import experiment as fourth

experiment = replace(
    fourth,
    name="toy_omni_weak",
    out="out/toy/omni/weak",
    start=fourth.out,
    data=replace(fourth.data, path="out/toy/omni/tasks5,out/toy/omni/paint3", weights=(0.72, 0.28)),
    optim=replace(fourth.optim, steps=5_000),
)
