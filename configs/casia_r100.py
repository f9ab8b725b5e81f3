"""CASIA-WebFace with iresnet100, arcface_torch's recipe."""

from configs.published import CASIA, arcface_torch

config = arcface_torch(CASIA, "iresnet100", output="runs/casia_r100", epochs=34, batch=512)
