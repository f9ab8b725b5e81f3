"""CASIA-WebFace with vit_s, by arcface_torch's recipe for transformers."""

from configs.published import CASIA, transformer

config = transformer(
    CASIA,
    "vit_s",
    output="runs/casia_vit_s",
    options={"mask_ratio": 0.0, "drop_path": 0.05},
    batch=512,
)
