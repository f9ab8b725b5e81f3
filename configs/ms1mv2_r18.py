"""MS1MV2 with iresnet18, arcface_torch's recipe."""

from configs.published import MS1MV2, arcface_torch

config = arcface_torch(MS1MV2, "iresnet18", output="runs/ms1mv2_r18")
