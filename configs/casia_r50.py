"""CASIA-WebFace with iresnet50, arcface_torch's recipe."""

from configs.published import CASIA, arcface_torch

config = arcface_torch(CASIA, "iresnet50", output="runs/casia_r50", epochs=34, batch=512)
