"""A MobileFaceNet for phones, taught by a large network: MS1MV3, and the teacher's embeddings.

    python train_dist.py configs/edge.py distill.teacher=w600k_r50.onnx

The teacher is any file that tools/evaluate.py takes. Its embeddings weigh more at first than at the
end, when the margin decides.
"""

from dataclasses import replace

from configs.published import MS1MV3, arcface_torch
from training.config import DistillConfig

config = replace(
    arcface_torch(MS1MV3, "mbf", output="runs/edge", weight_decay=1e-4, epochs=40),
    distill=DistillConfig(teacher="w600k_r50.onnx", weight=10.0, weight_end=1.0),
)
