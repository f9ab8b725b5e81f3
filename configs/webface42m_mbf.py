"""WebFace42M with mbf, after arcface_torch."""

from configs.published import WEBFACE42M, arcface_torch

config = arcface_torch(
    WEBFACE42M,
    "mbf",
    output="runs/webface42m_mbf",
    weight_decay=1e-4,
    batch=4096,
    rate=0.3,
    warmup_epochs=1,
    sample_rate=0.2,
)
