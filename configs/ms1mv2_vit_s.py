"""MS1MV2 with vit_s, by arcface_torch's recipe for transformers."""

from configs.published import MS1MV2, transformer

config = transformer(
    MS1MV2, "vit_s", output="runs/ms1mv2_vit_s", options={"mask_ratio": 0.0, "drop_path": 0.05}
)
