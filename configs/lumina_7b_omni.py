"""Omni-SFT of Lumina-mGPT 7B: seventeen kinds of task at about 768 x 768 pixels, up to two pictures a row (paper section 3.2.3).

lumina_jax/data/OMNI.md lists the commands that write the folders of MIX. To train on another mixture, set data.path and
data.weights together; a single folder needs no weights.
"""

from dataclasses import replace

from configs.lumina_7b_768 import experiment as stage_2

HOME = "tokens/omni"
MIX = {
    "generate": 0.25,  # FP-SFT data, some of stage 2's records, so that the model keeps generating from text
    "text": 0.04,
    "questions": 0.09,
    "magicbrush": 0.03,
    "seed_real": 0.08,
    "seed_multi": 0.06,
    "dialogs": 0.04,  # edits in up to three turns, at 512 x 512: four pictures fit in a row
    "dialogs_magicbrush": 0.01,
    "segmentation": 0.06,
    "depth": 0.045,
    "depth_sintel": 0.005,  # 1,000 frames (NYUv2: 795 photos); a larger share would repeat them too often
    "normal": 0.045,
    "normal_nyuv2": 0.005,
    "pose": 0.05,
    "detect": 0.06,
    "segmentation_to_image": 0.05,
    "depth_to_image": 0.03,
    "normal_to_image": 0.02,
    "pose_to_image": 0.03,
}
"""Folder below HOME -> share of an epoch's records. The paper names the data sets but not their shares; these are our choice."""

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
