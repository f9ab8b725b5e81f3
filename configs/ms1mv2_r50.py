"""MS1MV2 (faces_emore: 85,742 identities, 5,822,653 images) with iresnet50 and ArcFace.

The recipe of arcface_torch's ms1mv2_r50, which states its rate for the batch it runs with (1,024 on
eight GPUs): here that is 0.05 for 512. The gradient is arcface_torch's too.
"""

from training.config import Config, DataConfig, EvalConfig, HeadConfig, OptimConfig, RunConfig

FOLDER = "data/faces_emore"

config = Config(
    run=RunConfig(output="runs/ms1mv2_r50", epochs=20),
    data=DataConfig(train=FOLDER, global_batch=1024, augment=("flip",)),
    head=HeadConfig(
        loss="arcface",
        loss_args={"margin": 0.5, "scale": 64.0, "gradient": "straight_through"},
        num_classes=85_742,
    ),
    optim=OptimConfig(lr=0.05, weight_decay=1e-4),
    eval=EvalConfig(sets=tuple(f"{FOLDER}/{name}.bin" for name in ("lfw", "cfp_fp", "agedb_30"))),
)
