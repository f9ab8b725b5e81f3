"""WebFace42M with multi-head sampling: classes lie in groups, and a step trains those it needs.

A step sees the groups that its labels lie in and 50 more, in place of a random share of all.
"""

from dataclasses import replace

from configs.published import WEBFACE42M, arcface_torch

_config = arcface_torch(
    WEBFACE42M, "iresnet50", output="runs/mhs", batch=4096, rate=0.3, warmup_epochs=1
)
config = replace(_config, head=replace(_config.head, sample_groups=20_000, random_groups=50))
