"""MS1MV2 with mbf, after arcface_torch."""

from configs.published import MS1MV2, arcface_torch

config = arcface_torch(MS1MV2, "mbf", output="runs/ms1mv2_mbf", weight_decay=1e-4, epochs=40)
