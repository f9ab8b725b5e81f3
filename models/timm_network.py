"""Networks of timm (https://github.com/huggingface/pytorch-image-models), by "timm/NAME".

Beside what timm builds there is a last layer, as IResNet has it. timm is no requirement: it needs
torchvision, which must fit the installed torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor, nn

from facestream import UserError
from models.input import Input
from models.sizes import check_images, check_sizes

PREFIX = "timm/"
# As timm's networks call what they exempt from weight decay.
UNDECAYED = (
    *("pos_embed", "cls_token", "dist_token", "reg_token", "mask_token"),
    *("relative_position_bias_table", "temperature"),
)


class TimmNetwork(nn.Module):
    """Embeds face images by a network of timm, whose own head a linear layer and BatchNorm replace.

    It starts from random weights.

    Args:
        name: as timm knows it, without the prefix.
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels.

    Raises:
        UserError: see `check_timm`; or timm cannot build it for images of this size.
    """

    def __init__(self, name: str, *, embedding_dim: int, image_size: int) -> None:
        super().__init__()
        check_timm(name, embedding_dim=embedding_dim, image_size=image_size)
        timm = _import_timm()
        wanted = timm.get_pretrained_cfg(name)
        # Others take any size, and no such argument.
        sizes = {"img_size": image_size} if wanted.fixed_input_size else {}
        self.image_size = image_size
        try:
            self.network = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
        except Exception as error:  # whatever timm's code of a network may raise
            raise UserError(
                f"timm cannot build {name} for images of {image_size} pixels: "
                f"{type(error).__name__}: {error}. Try another image_size, such as "
                f"{wanted.input_size[-1]}, for which it was made"
            ) from error
        pixels = Input(range=(0.0, 1.0), mean=tuple(wanted.mean), std=tuple(wanted.std))
        scale, shift = pixels.from_normalized()
        self.scale = nn.Parameter(torch.tensor(scale).view(1, 3, 1, 1), requires_grad=False)
        self.shift = nn.Parameter(torch.tensor(shift).view(1, 3, 1, 1), requires_grad=False)
        inputs = getattr(self.network, "head_hidden_size", None) or self.network.num_features
        self.fc = nn.Linear(inputs, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        # The margin head works on directions: a learned scale per feature would only bend them.
        self.features.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, image_size, image_size), floating, as (B, embedding_dim).

        The last linear layer and BatchNorm run in the dtype of their weights, float32 unless the
        network was moved to another, under autocast too. So are the embeddings.

        Raises:
            ValueError: images of another size, or not yet normalized to a floating dtype.
        """
        check_images(images, self.image_size)
        scale, shift = self.scale.to(images.dtype), self.shift.to(images.dtype)
        x = self.network(images * scale + shift)
        with torch.autocast(images.device.type, enabled=False):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def check_timm(name: str, *, embedding_dim: int, image_size: int) -> None:
    """Raise UserError where timm is not there or has no such network."""
    check_sizes(embedding_dim=embedding_dim, image_size=image_size)
    timm = _import_timm()
    if not timm.is_model(name):
        like = timm.list_models(f"*{name.partition('_')[0]}*")[:6]
        raise UserError(
            f"timm has no network {name!r}: expected one of timm.list_models(), such as "
            f"{', '.join(like or timm.list_models()[:6])}"
        )


def _import_timm() -> ModuleType:
    if importlib.util.find_spec("timm") is None:
        raise UserError(
            "networks called timm/… need timm, which is not installed: pip install timm. It brings "
            "torchvision, in the version that fits your torch"
        )
    return importlib.import_module("timm")
