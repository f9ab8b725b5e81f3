"""MagFace (CVPR 2021) on MS1MV2 with iresnet50, after its authors' run_dist.sh.

Batch 512, 25 epochs, the rate divided by ten after 10, 18 and 22.
"""

from configs.published import MS1MV2, stepped

config = stepped(
    MS1MV2,
    "iresnet50",
    "magface",
    output="runs/magface",
    epochs=25,
    decay_epochs=(10, 18, 22),
    l_a=10,
    u_a=110,
    l_margin=0.45,
    u_margin=0.8,
    lambda_g=35,
)
