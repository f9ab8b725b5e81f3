"""ElasticFace-Arc (CVPRW 2022) on MS1MV2 with iresnet100, after its authors' config.py.

Batch 512, 26 epochs. Their list of epochs, [8, 14, 20, 25], acts an epoch earlier each.
HSTFaceNet trains this with a margin of 0.5, then 0.6 (`head.loss_args.margin=0.6`).
"""

from configs.published import MS1MV2, stepped

config = stepped(
    MS1MV2,
    "iresnet100",
    "elastic_arcface",
    output="runs/elastic",
    epochs=26,
    decay_epochs=(7, 13, 19, 24),
    margin=0.5,
    std=0.05,
)
