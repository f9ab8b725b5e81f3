"""Glint360K with vit_s, by arcface_torch's recipe for transformers."""

from configs.published import GLINT360K, transformer

config = transformer(
    GLINT360K,
    "vit_s",
    output="runs/glint360k_vit_s",
    options={"mask_ratio": 0.0, "drop_path": 0.05},
)
