"""Forward and backward of a network alone, by precision, memory layout and compiler.

The peaks for it are the arithmetic of its convolutions and products, and the bytes that its
operations read and write where each is a kernel of its own (models/traffic.py).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from benchmarks.suite.facts import name_of
from benchmarks.suite.figures import Figures, run_stage
from benchmarks.suite.measure import Effort, Row, Step
from models import Architecture, normalize
from models.cost import multiply_adds
from models.traffic import bytes_an_image
from training.distributed import World
from training.step.compile import compile_backbone
from training.step.precision import Precision, choose_precision

SIZE = 112
BASELINE = "float32 NCHW"


class How(NamedTuple):
    """One way of running a network."""

    precision: Precision
    nchw: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        layout = "NCHW" if self.nchw else "channels_last"
        return f"{name_of(self.precision.compute_dtype)} {layout}{' compiled' * self.compiled}"


ON_CPU = [("iresnet50", 16), ("iresnet18", 32), ("mbf", 32)]
# On a CPU compiling it takes minutes; benchmarks/train_step.py has it.
NOT_COMPILED = ("iresnet50",)
ON_GPU = [("iresnet50", 256), ("iresnet18", 512), ("mbf", 512), ("vit_t", 256), ("iresnet100", 128)]
TOYS = [("iresnet10", 2)]


def backbone(figures: Figures) -> None:
    world = figures.world
    on_cpu = world.device.type == "cpu"
    if figures.quick:
        torch.compiler.set_stance("force_eager")  # all that surrounds the compiler, without it
    whole, mixed = (choose_precision(world.device, asked) for asked in ("fp32", "auto"))
    halves = [mixed] if mixed.compute_dtype != torch.float32 else []
    hows = [
        *(How(precision, nchw=nchw) for precision in (whole, *halves) for nchw in (True, False)),
        How(mixed, compiled=True),
    ]
    effort = Effort(seconds=15.0) if on_cpu else Effort(seconds=4.0, steps=5, warm_up=10)
    for model, batch in TOYS if figures.quick else ON_CPU if on_cpu else ON_GPU:
        ways = {
            str(how): partial(_step, model, batch, how, world)
            for how in hows
            if not (on_cpu and how.compiled and model in NOT_COMPILED)
        }
        dtypes = {str(how): how.precision.compute_dtype for how in hows}
        more = partial(_costs, Architecture(model), batch, world, dtypes)
        figures.compare(ways, effort, more=more, model=model, batch=batch)


def _costs(
    architecture: Architecture,
    batch: int,
    world: World,
    dtypes: dict[str, torch.dtype],
    way: str,
    found: Row,
) -> Row:
    """Of a rank's step: forward, and backward, which is twice the arithmetic."""
    size = dtypes[way].itemsize / torch.bfloat16.itemsize
    return {
        "dtype": name_of(dtypes[way]),
        "images_per_s": world.world_size * batch / found["seconds"],
        "flops": 3 * 2 * batch * multiply_adds(architecture),
        "bytes": batch * bytes_an_image(architecture).total() * size,
    }


def _step(model: str, batch: int, how: How, world: World) -> Step:
    torch.manual_seed(0)
    architecture = Architecture(model)
    network = architecture.create().to(world.device).train()
    pixels = torch.randint(0, 256, (batch, SIZE, SIZE, 3), dtype=torch.uint8, device=world.device)
    images = pixels.permute(0, 3, 1, 2)  # channels_last, as the loader yields them
    if how.nchw:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        images = images.contiguous()
    if how.compiled:
        about = compile_backbone(
            network,
            stages=architecture.family.stages,
            alone=True,
            batch=batch,
            image_size=SIZE,
            precision=how.precision,
        )
        print(f"{model}, {how}: {about}", flush=True)

    def step() -> None:
        with how.precision.autocast(world.device):
            embeddings = network(normalize(images, how.precision.compute_dtype))
        embeddings.float().square().sum().backward()
        network.zero_grad()

    return step


if __name__ == "__main__":
    run_stage(backbone)
