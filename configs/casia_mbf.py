"""CASIA-WebFace with mbf, arcface_torch's recipe."""

from configs.published import CASIA, arcface_torch

config = arcface_torch(
    CASIA, "mbf", output="runs/casia_mbf", weight_decay=1e-4, epochs=34, batch=512
)
