"""Synthetic faces of 64 pixels, a small network, minutes on two CPU cores: see `make demo`."""

from training.config import (
    Config,
    DataConfig,
    EvalConfig,
    HeadConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)

FOLDER = "runs/demo_data"  # written by tools/make_synthetic.py --size 64

config = Config(
    run=RunConfig(output="runs/demo", epochs=5, save_every=3),
    data=DataConfig(train=FOLDER, global_batch=32, image_size=64),
    model=ModelConfig(name="iresnet10", width=0.25, embedding_dim=128),
    head=HeadConfig(loss="arcface", loss_args={"margin": 0.3, "scale": 32.0}),
    optim=OptimConfig(lr=0.8, warmup_epochs=0.5),
    eval=EvalConfig(sets=(f"{FOLDER}/val.bin",), every=3),
    log=LogConfig(every=50),
)
