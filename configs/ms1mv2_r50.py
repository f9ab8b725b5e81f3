"""MS1MV2 (faces_emore: 85,742 identities, 5,822,653 images) with iresnet50 and ArcFace.

The recipe of arcface_torch's ms1mv2_r50 as its published log was trained, before April 2023: weight
decay 5e-4 (versions of its file say 1e-4), and a rate that falls with the square of the steps that
are left. Since then arcface_torch's rate falls linearly: `optim.power=1` is today's. The gradient
is arcface_torch's too.

arcface_torch takes its rate, 0.1, as it is; it is meant for eight GPUs with 128 images each: here
that is 0.05 for 512, in proportion. On two GPUs with 128 each arcface_torch keeps 0.1; here
`data.global_batch=256` trains with a quarter of it, 0.025, and `optim.lr=0.2` keeps 0.1.
"""

from configs.published import MS1MV2, arcface_torch

config = arcface_torch(MS1MV2, "iresnet50", output="runs/ms1mv2_r50")
