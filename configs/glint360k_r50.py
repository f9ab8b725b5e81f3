"""Glint360K with iresnet50, after arcface_torch."""

from configs.published import GLINT360K, arcface_torch

config = arcface_torch(GLINT360K, "iresnet50", output="runs/glint360k_r50")
