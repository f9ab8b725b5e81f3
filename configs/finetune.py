"""A published network for faces of your own: a few thousand people, a loss that does not jump.

    python train_dist.py configs/finetune.py run.init_from=model.onnx data.train=FACES

New centers start at the mean embeddings of their people, and for an epoch they alone learn. Then
the network does, slowly, and BatchNorm keeps the statistics that it came with: a few faces have
others, which would change what the network computes.
"""

from training.config import (
    Config,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)

config = Config(
    run=RunConfig(output="runs/finetune", epochs=8, init_from="model.onnx"),
    data=DataConfig(train="data/faces", labels="dense", global_batch=128),
    model=ModelConfig(name="iresnet50"),
    head=HeadConfig(loss="arcface", loss_args={"margin": 0.5, "scale": 64.0}, lr=0.2),
    optim=OptimConfig(lr=0.01, warmup_epochs=1, freeze_epochs=1, freeze_bn=True),
)
