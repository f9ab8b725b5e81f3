"""MS1MV2 with iresnet100, after arcface_torch."""

from configs.published import MS1MV2, arcface_torch

config = arcface_torch(MS1MV2, "iresnet100", output="runs/ms1mv2_r100")
