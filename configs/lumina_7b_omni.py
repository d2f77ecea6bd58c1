"""Omni-SFT of Lumina-mGPT 7B: seventeen kinds of task at about 768 x 768 pixels, up to two pictures a row (paper section 3.3).

lumina_jax/data/OMNI.md has the commands that make the folders of MIX. For a mixture of one's own, give data.path and
data.weights together; to write one of the folders, data.path=FOLDER data.weights=
"""

from dataclasses import replace

from configs.lumina_7b_768 import experiment as stage_2

HOME = "tokens/omni"
MIX = {
    "generate": 0.25,  # the share of FP-SFT data: a part of stage 2's records, so that painting from text is kept
    "text": 0.04,
    "questions": 0.09,
    "magicbrush": 0.03,
    "seed_real": 0.08,
    "seed_multi": 0.06,
    "dialogs": 0.04,  # edits in up to three turns, at 512 x 512: four pictures fit in a row
    "dialogs_magicbrush": 0.01,
    "segmentation": 0.06,
    "depth": 0.045,
    "depth_sintel": 0.005,  # a thousand frames, and of NYUv2 795 photos: a larger share would repeat them too often
    "normal": 0.045,
    "normal_nyuv2": 0.005,
    "pose": 0.05,
    "detect": 0.06,
    "segmentation_to_image": 0.05,
    "depth_to_image": 0.03,
    "normal_to_image": 0.02,
    "pose_to_image": 0.03,
}
"""The folders below HOME and their shares of an epoch's records. The paper tells the sets, not their shares: these are ours."""

experiment = replace(
    stage_2,
    name="lumina_7b_omni",
    out="out/lumina_7b_omni",
    start=stage_2.out,
    data=replace(
        stage_2.data,
        path=",".join(f"{HOME}/{folder}" for folder in MIX),
        weights=tuple(MIX.values()),
        buckets=(2560, 5120),
        batch=256,
    ),
)
