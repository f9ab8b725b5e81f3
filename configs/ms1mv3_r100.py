"""MS1MV3 with iresnet100, after arcface_torch."""

from configs.published import MS1MV3, arcface_torch

config = arcface_torch(MS1MV3, "iresnet100", output="runs/ms1mv3_r100")
