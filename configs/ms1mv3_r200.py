"""MS1MV3 with iresnet200, arcface_torch's recipe."""

from configs.published import MS1MV3, arcface_torch

config = arcface_torch(MS1MV3, "iresnet200", output="runs/ms1mv3_r200")
