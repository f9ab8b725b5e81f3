"""WebFace4M with iresnet200, arcface_torch's recipe."""

from configs.published import WEBFACE4M, arcface_torch

config = arcface_torch(WEBFACE4M, "iresnet200", output="runs/webface4m_r200")
