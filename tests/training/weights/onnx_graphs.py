"""Small networks as .onnx files, as arcface_torch's users make them with torch's two exporters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.onnx import TrainingMode

from tests.models.small import SIZE, images, trained


class Reshaped(nn.Module):
    """An IResNet whose last map is flattened by a word of `view`, with Dropout before `fc`."""

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        self.network, self.form = network, form
        self.dropout = nn.Dropout(0.4)

    def forward(self, images: Tensor) -> Tensor:
        net = self.network
        x = net.prelu(net.bn1(net.conv1(images)))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
        x = net.bn2(x)
        rows = {
            "flatten": lambda: torch.flatten(x, 1),
            "view": lambda: x.view(x.size(0), -1),
            "reshape": lambda: x.reshape(-1, net.fc.in_features),
        }[self.form]()
        return net.features(net.fc(self.dropout(rows)))


def source(name: str = "iresnet10") -> nn.Module:
    """A network whose every tensor is away from its default, in evaluation mode.

    Its statistics are those of images, so that its embeddings tell images apart.
    """
    network = trained(name).to(memory_format=torch.contiguous_format)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images(16))
    return network.eval()


def write(
    path: Path,
    network: nn.Module,
    *,
    opset: int = 17,
    folded: bool = True,
    free_batch: bool = True,
    dynamo: bool = False,
    dropout: bool = False,
    outputs: Sequence[str] = ("embeddings",),
) -> Path:
    """Export a network; folded, BatchNorms behind convolutions are merged into them.

    Args:
        dropout: leave it in the graph, which evaluation does not need.
        outputs: their names.
    """
    example = torch.zeros(2 if free_batch else 1, 3, SIZE, SIZE)
    options: dict[str, Any] = {"input_names": ["images"], "output_names": [*outputs]}
    if dynamo:
        free = ({0: torch.export.Dim("n")},) if free_batch else None
        options |= {"dynamic_shapes": free, "optimize": folded, "verbose": False}
    else:
        axes = {"images": {0: "n"}, "embeddings": {0: "n"}} if free_batch else None
        mode = TrainingMode.EVAL if folded else TrainingMode.PRESERVE
        options |= {"dynamic_axes": axes, "training": mode, "do_constant_folding": folded}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (example,), str(path), dynamo=dynamo, opset_version=opset, **options
        )
    if dropout:
        _add_dropout(path)
    return path


def _add_dropout(path: Path) -> None:
    """Before the product, as exporters of training graphs leave it there."""
    model = onnx.load(path)
    product = next(node for node in model.graph.node if node.op_type == "Gemm")
    node = onnx.helper.make_node("Dropout", [product.input[0]], ["dropped", "mask"])
    product.input[0] = "dropped"
    model.graph.node.insert([*model.graph.node].index(product), node)
    onnx.save(model, path)
