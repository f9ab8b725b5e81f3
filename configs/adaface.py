"""AdaFace (CVPR 2022) on MS1MV2 with iresnet100, after its authors' run_ir101_ms1mv2.sh.

Batch 512, 26 epochs, the rate divided by ten after 12, 20 and 24, and the augmentation that the
loss is made for: a fifth of the images cropped, a fifth in a lower resolution, a fifth relit.
"""

from configs.published import MS1MV2, stepped

config = stepped(
    MS1MV2,
    "iresnet100",
    "adaface",
    output="runs/adaface",
    epochs=26,
    decay_epochs=(12, 20, 24),
    augment=("flip", "adaface"),
    margin=0.4,
    h=0.333,
    t_alpha=0.01,
)
