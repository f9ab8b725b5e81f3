"""WebFace12M with iresnet18, arcface_torch's recipe."""

from configs.published import WEBFACE12M, arcface_torch

config = arcface_torch(WEBFACE12M, "iresnet18", output="runs/webface12m_r18")
