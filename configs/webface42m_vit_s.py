"""WebFace42M with vit_s, by arcface_torch's recipe for transformers."""

from configs.published import WEBFACE42M, transformer

config = transformer(
    WEBFACE42M,
    "vit_s",
    output="runs/webface42m_vit_s",
    options={"mask_ratio": 0.0, "drop_path": 0.05},
    sample_rate=0.3,
)
