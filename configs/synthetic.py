"""Drawn faces by the hundred thousand, to see how fast a machine trains without anybody's photos.

python tools/make_synthetic.py data/synthetic --identities 10000 --images 20
torchrun --nproc_per_node=8 train_dist.py configs/synthetic.py
"""

from training.config import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig, RunConfig

config = Config(
    run=RunConfig(output="runs/synthetic", epochs=2),
    data=DataConfig(train="data/synthetic", global_batch=512),
    model=ModelConfig(name="iresnet50"),
    head=HeadConfig(loss="arcface", loss_args={"margin": 0.5, "scale": 64.0}),
    optim=OptimConfig(lr=0.1),
)
