"""WebFace42M with vit_b, after arcface_torch's wf42m_pfc03_40epoch_8gpu_vit_b.

Its batch is 256 images on each of eight GPUs, 12 times before a step: 24,576, at a rate of 0.001.
On eight GPUs `step.micro_batches=12` is the same.
"""

from dataclasses import replace

from configs.published import WEBFACE42M, transformer

_config = transformer(
    WEBFACE42M,
    "vit_b",
    output="runs/webface42m_vit_b",
    options={"drop_path": 0.05},
    batch=24_576,
    sample_rate=0.3,
)
# That rate for that batch, and the centers' as it is for 4,096.
config = replace(
    _config,
    optim=replace(_config.optim, lr=0.001 * 512 / 24_576),
    head=replace(_config.head, lr=0.1 * 512 / 24_576),
)
