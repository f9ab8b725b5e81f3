"""WebFace42M (2,059,906 identities, 42,474,557 images) with a tiny vision transformer and CosFace.

After arcface_torch's wf42m_pfc03_40epoch_8gpu_vit_t: AdamW, eight GPUs with 512 images each, a rate
of 0.001 for these 4,096, which is 0.000125 for 512, in proportion.
"""

from configs.published import WEBFACE42M, transformer

config = transformer(
    WEBFACE42M,
    "vit_t",
    output="runs/webface42m_vit_t",
    options={"mask_ratio": 0.0, "drop_path": 0.05},
    sample_rate=0.3,
)
