"""Glint360K with iresnet200, arcface_torch's recipe."""

from configs.published import GLINT360K, arcface_torch

config = arcface_torch(GLINT360K, "iresnet200", output="runs/glint360k_r200")
