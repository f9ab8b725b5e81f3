"""WebFace4M with mbf, after arcface_torch."""

from configs.published import WEBFACE4M, arcface_torch

config = arcface_torch(WEBFACE4M, "mbf", output="runs/webface4m_mbf", weight_decay=1e-4)
