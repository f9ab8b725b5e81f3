"""WebFace12M with iresnet100, after arcface_torch."""

from configs.published import WEBFACE12M, arcface_torch

config = arcface_torch(WEBFACE12M, "iresnet100", output="runs/webface12m_r100")
