"""WebFace42M with iresnet18, after arcface_torch."""

from configs.published import WEBFACE42M, arcface_torch

config = arcface_torch(
    WEBFACE42M,
    "iresnet18",
    output="runs/webface42m_r18",
    batch=4096,
    rate=0.3,
    warmup_epochs=1,
    sample_rate=0.2,
)
