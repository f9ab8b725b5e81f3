"""WebFace12M with mbf, after arcface_torch."""

from configs.published import WEBFACE12M, arcface_torch

config = arcface_torch(WEBFACE12M, "mbf", output="runs/webface12m_mbf", weight_decay=1e-4)
