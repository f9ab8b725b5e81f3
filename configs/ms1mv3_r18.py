"""MS1MV3 with iresnet18, after arcface_torch."""

from configs.published import MS1MV3, arcface_torch

config = arcface_torch(MS1MV3, "iresnet18", output="runs/ms1mv3_r18")
