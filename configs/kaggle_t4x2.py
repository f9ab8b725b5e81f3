"""MS1MV2 on Kaggle's two T4s, with AdaFace over a tenth of the centers: the shape of HSTFaceNet.

launch/kaggle.ipynb starts it. 256 images a GPU, saved before the session's 12 hours end; the next
session goes on.
"""

from dataclasses import replace

from configs.published import MS1MV2, stepped

_config = stepped(
    replace(MS1MV2, folder="/kaggle/input/ms1mv2/faces_emore/faces_emore", sets=("lfw",)),
    "iresnet50",
    "adaface",
    output="/kaggle/working/run",
    epochs=20,
    decay_epochs=(8, 12, 15, 18),
    margin=0.4,
    h=0.333,
    t_alpha=0.01,
)
config = replace(
    _config,
    run=replace(_config.run, max_hours=11.5, save_steps=2000),
    head=replace(_config.head, sample_rate=0.1),
)
