"""WebFace4M with vit_s, by arcface_torch's recipe for transformers."""

from configs.published import WEBFACE4M, transformer

config = transformer(
    WEBFACE4M,
    "vit_s",
    output="runs/webface4m_vit_s",
    options={"mask_ratio": 0.0, "drop_path": 0.05},
)
