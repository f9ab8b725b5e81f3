"""WebFace4M with iresnet50, after arcface_torch."""

from configs.published import WEBFACE4M, arcface_torch

config = arcface_torch(WEBFACE4M, "iresnet50", output="runs/webface4m_r50")
