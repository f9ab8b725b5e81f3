"""MS1MV3 with mbf, after arcface_torch."""

from configs.published import MS1MV3, arcface_torch

config = arcface_torch(MS1MV3, "mbf", output="runs/ms1mv3_mbf", weight_decay=1e-4, epochs=40)
