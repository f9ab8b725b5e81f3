"""WebFace4M with iresnet100, after arcface_torch."""

from configs.published import WEBFACE4M, arcface_torch

config = arcface_torch(WEBFACE4M, "iresnet100", output="runs/webface4m_r100")
