"""MS1MV3 with vit_s, by arcface_torch's recipe for transformers."""

from configs.published import MS1MV3, transformer

config = transformer(
    MS1MV3, "vit_s", output="runs/ms1mv3_vit_s", options={"mask_ratio": 0.0, "drop_path": 0.05}
)
