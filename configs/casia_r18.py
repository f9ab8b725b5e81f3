"""CASIA-WebFace with iresnet18, arcface_torch's recipe."""

from configs.published import CASIA, arcface_torch

config = arcface_torch(CASIA, "iresnet18", output="runs/casia_r18", epochs=34, batch=512)
