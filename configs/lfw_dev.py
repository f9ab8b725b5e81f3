"""Real faces: 370 identities of LFW in InsightFace's layout, on two CPU cores.

Eleven minutes where they have bfloat16, more than half an hour where they do not.
"""

from training.config import (
    Config,
    DataConfig,
    EvalConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)

FOLDER = "../shared/data/faces_lfw_dev"

config = Config(
    run=RunConfig(output="runs/lfw_dev", epochs=30, save_every=15),
    data=DataConfig(train=FOLDER, global_batch=64, augment=("flip", "geometry", "light")),
    model=ModelConfig(name="iresnet10", width=0.5, embedding_dim=256, dropout=0.4),
    head=HeadConfig(loss="cosface", loss_args={"margin": 0.25, "scale": 32.0}),
    optim=OptimConfig(lr=0.8, warmup_epochs=1),
    eval=EvalConfig(sets=(f"{FOLDER}/lfw_dev_val.bin",), every=15),
)
