"""CASIA-WebFace with iresnet200, arcface_torch's recipe."""

from configs.published import CASIA, arcface_torch

config = arcface_torch(CASIA, "iresnet200", output="runs/casia_r200", epochs=34, batch=512)
