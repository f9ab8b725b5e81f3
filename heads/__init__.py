"""Embeddings and labels → loss: margin-softmax heads over very many classes."""

from heads.margins import ArcFace, CosFace, Margin, Softmax, Target, create_margin
from heads.partial_fc import PartialFC

__all__ = ["ArcFace", "CosFace", "Margin", "PartialFC", "Softmax", "Target", "create_margin"]
