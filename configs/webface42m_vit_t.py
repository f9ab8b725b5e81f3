"""WebFace42M (2,059,906 identities, 42,474,557 images) with a tiny vision transformer and CosFace.

After arcface_torch's wf42m_pfc03_40epoch_8gpu_vit_t: AdamW, eight GPUs with 512 images each, a rate
of 0.001 for these 4,096, which is 0.000125 for 512, in proportion. Two things differ. Positions,
biases and the scales of normalization are not decayed here; arcface_torch decays everything. And
its centers have AdamW too, where ours always have SGD: they get the rate and decay of its recipe
for the same data and batch with SGD, 0.1 for 4,096.
"""

from training.config import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig, RunConfig

config = Config(
    run=RunConfig(output="runs/webface42m_vit_t", epochs=40),
    data=DataConfig(train="data/WebFace42M", global_batch=4096, augment=("flip",)),
    model=ModelConfig(name="vit_t", options={"mask_ratio": 0.0, "drop_path": 0.05}),
    head=HeadConfig(
        loss="cosface",
        loss_args={"margin": 0.4, "scale": 64.0},
        sample_rate=0.3,
        num_classes=2_059_906,
        lr=0.0125,
        weight_decay=5e-4,
    ),
    optim=OptimConfig(
        name="adamw", lr=1.25e-4, weight_decay=0.1, decay_norm_and_bias=False, warmup_epochs=4
    ),
)
