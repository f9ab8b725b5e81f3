"""The vision transformer (https://arxiv.org/abs/2010.11929) in arcface_torch's form.

Patches overlap nowhere and there is no class token: all tokens together go through two linear
layers. Parameter names, shapes and, but for rounding, numerics are arcface_torch's, so a state dict
of either loads into the other with strict=True. One thing differs: in training arcface_torch hides
a tenth of the patches whatever mask ratio is asked for, unless that is 0; here it is that ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestream import UserError
from models.sizes import check_images, check_share, check_sizes

HEADS = 8  # of all that arcface_torch has; no state dict tells it


@dataclass(frozen=True)
class Form:
    """What tells one of them from another, and how arcface_torch trains it."""

    dim: int
    depth: int
    mask_ratio: float = 0.1
    drop_path: float = 0.1


FORMS = {
    "vit_t": Form(256, 12),
    "vit_s": Form(512, 12),
    "vit_b": Form(512, 24),
    "vit_l": Form(768, 24, mask_ratio=0.05, drop_path=0.05),
}
# Neither weights of a product nor scales: positions and the token that stands for hidden patches.
UNDECAYED = ("pos_embed", "mask_token")


class VisionTransformer(nn.Module):
    """Embeds face images.

    Args:
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels; what no whole patch covers is not
            looked at.
        dim: features of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention.
        patch: height and width of a patch in pixels.
        mask_ratio: share of the patches that no block sees in training, in [0, 1).
        drop_path: probability that a training image skips the last block's layers, in [0, 1); that
            of earlier blocks is in proportion, from 0 at the first (stochastic depth,
            https://arxiv.org/abs/1603.09382).

    Raises:
        UserError: an argument outside its range; see `check_vit`.
    """

    folds: ClassVar = (("feature.0", "feature.1"), ("feature.2", "feature.3"))  # see models.fold

    def __init__(
        self,
        *,
        embedding_dim: int,
        image_size: int,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
        mask_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        check_vit(
            embedding_dim=embedding_dim,
            image_size=image_size,
            dim=dim,
            depth=depth,
            heads=heads,
            patch=patch,
            mask_ratio=mask_ratio,
            drop_path=drop_path,
        )
        self.image_size = image_size
        tokens = (image_size // patch) ** 2
        self.visible = int(tokens * (1 - mask_ratio))
        self.drop_rates = [drop_path * number / max(1, depth - 1) for number in range(depth)]
        self.patch_embed = PatchEmbedding(dim, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(dim * tokens, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )

        # What stands for no token has no gradient, which ranks would wait for.
        self.mask_token.requires_grad_(self.visible < tokens)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, 3, image_size, image_size), floating, as (B, embedding_dim).

        What follows the blocks runs in the dtype of its weights, float32 unless the network was
        moved to another, under autocast too. So are the embeddings.

        Raises:
            ValueError: images of another size, or not yet normalized to a floating dtype.
        """
        check_images(images, self.image_size)
        x = self.patch_embed(images) + self.pos_embed  # (B, N, dim)
        places = None
        if self.training and self.visible < x.shape[1]:
            x, places = self._hide(x)
        for block, rate in zip(self.blocks, self.drop_rates):
            x = block(x, *self._survivors(x, rate))
        with torch.autocast(images.device.type, enabled=False):
            x = self.norm(x.to(self.norm.weight.dtype))
            if places is not None:
                hidden = self.mask_token.expand(len(x), places.shape[1] - x.shape[1], -1)
                x = _take(torch.cat([x, hidden], dim=1), places)
            return self.feature(x.flatten(1))

    def _hide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of (B, N, dim) the visible tokens of each image, drawn at random, and (B, N), where each
        token is when those that are hidden come after them."""
        order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
        return _take(x, order[:, : self.visible]), order.argsort(dim=1)

    def _survivors(self, x: Tensor, rate: float) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Factors (B, 1, 1) of a block's two layers: 0 for images that skip it, or else what keeps
        the mean. Drawn outside of the block, so that running it again repeats it."""
        if not self.training or not rate:
            return None, None
        keep = 1 - rate
        drawn = torch.rand((2, len(x), 1, 1), device=x.device) < keep
        attention, mlp = drawn / keep
        return attention, mlp


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) → (B, N, dim), a token a patch."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention between the tokens and two layers on each, both added to the input (B, N, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, attention: Tensor | None, mlp: Tensor | None) -> Tensor:
        x = x + _scaled(self.attn(self.norm1(x)), attention)
        return x + _scaled(self.mlp(self.norm2(x)), mlp)


class Attention(nn.Module):
    """Self-attention of (B, N, dim) with several heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, dim / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """(B, N, dim) → (B, N, 4 · dim) → (B, N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _scaled(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor.to(x.dtype)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """Of (B, N, dim) the tokens at (B, M)."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def check_vit(
    *,
    embedding_dim: int,
    image_size: int,
    dim: int,
    depth: int,
    heads: int,
    patch: int,
    mask_ratio: float,
    drop_path: float,
) -> None:
    """Raise UserError, naming the argument, for what no such network can be built from."""
    check_sizes(embedding_dim=embedding_dim, image_size=image_size, multiple=1)
    for name, value in (("dim", dim), ("depth", depth), ("heads", heads), ("patch", patch)):
        if type(value) is not int or value < 1:
            raise UserError(f"{name} is {value}: it must be a whole number of at least 1")
    if dim % heads:
        raise UserError(f"dim is {dim}: it must be a multiple of heads, which is {heads}")
    if patch > image_size:
        raise UserError(f"patch is {patch}: it must be at most the image_size, {image_size}")
    check_share("mask_ratio", mask_ratio)
    check_share("drop_path", drop_path)
    if int((image_size // patch) ** 2 * (1 - mask_ratio)) < 1:
        raise UserError(f"mask_ratio is {mask_ratio}: it must leave one patch to be seen")
