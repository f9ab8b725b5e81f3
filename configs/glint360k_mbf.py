"""Glint360K with mbf, after arcface_torch."""

from configs.published import GLINT360K, arcface_torch

config = arcface_torch(GLINT360K, "mbf", output="runs/glint360k_mbf", weight_decay=1e-4)
