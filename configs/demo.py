"""The demo: synthetic faces, a small network, minutes on two CPU cores. Run it with `make demo`."""

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

FOLDER = "runs/demo_data"  # written by tools/make_synthetic.py

config = Config(
    run=RunConfig(output="runs/demo", epochs=6, save_every=3),
    data=DataConfig(train=FOLDER, global_batch=64),
    model=ModelConfig(name="iresnet10", width=0.25, embedding_dim=128),
    head=HeadConfig(loss="arcface", loss_args={"margin": 0.3, "scale": 32.0}),
    optim=OptimConfig(lr=0.8, warmup_epochs=0.5),
    eval=EvalConfig(sets=(f"{FOLDER}/val.bin",), every=2),
    log=LogConfig(every=25),
)
