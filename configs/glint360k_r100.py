"""Glint360K with iresnet100, after arcface_torch."""

from configs.published import GLINT360K, arcface_torch

config = arcface_torch(GLINT360K, "iresnet100", output="runs/glint360k_r100")
