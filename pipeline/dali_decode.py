"""Decoding with DALI: where, under which settings, and what is wrong with an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from facestream import UserError
from pipeline import dali

DecodeDevice = Literal["gpu", "hybrid", "cpu"]
PREFETCH = 2  # batches: one is made while another is used


def choose_decode_device(device: torch.device) -> tuple[DecodeDevice, str]:
    """Where to decode for a compute device, and why, in words for the log."""
    if device.type == "cpu":
        return "cpu", "there is no GPU"
    major, minor = torch.get_device_module(device).get_device_capability(device)
    name = f"compute capability {major}.{minor}"
    if not dali.is_installed():
        return "hybrid", "without DALI only the CPU decodes"
    if (major, minor) in ((8, 0), (9, 0), (10, 0)):  # A100, H100, B200
        return "gpu", f"{name} is known to have a JPEG engine"
    return "hybrid", f"{name} is not known to have a JPEG engine: only augment on the GPU"


def find_faults(encoded: Sequence[bytes | np.ndarray], image_size: int) -> dict[int, str]:
    """Decode one by one, on the CPU: what is wrong with which of these images."""
    faults: dict[int, str] = {}
    expected = (image_size, image_size, 3)
    waiting = list(range(len(encoded)))
    while waiting:
        queue = iter(list(waiting))
        pipeline = dali.Pipeline(**pipeline_settings(1, 1, torch.device("cpu"), prefetch=1))
        with pipeline:
            inputs = dali.fn.external_source(
                source=lambda: [np.frombuffer(encoded[next(queue)], np.uint8)],  # noqa: B023
                batch=True,
                dtype=dali.types.UINT8,
                ndim=1,
            )
            pipeline.set_outputs(decoded(inputs, "cpu"))
        pipeline.build()
        try:
            while waiting:
                shape = pipeline.run()[0].shape()[0]
                i = waiting.pop(0)
                if tuple(shape) != expected:
                    faults[i] = f"is {shape[1]}×{shape[0]}, not {image_size}×{image_size} pixels"
        except RuntimeError:
            start = bytes(encoded[waiting[0]][:4]).hex(" ")
            faults[waiting.pop(0)] = f"cannot be decoded (it starts with {start})"
    return faults


def require_size(shapes: np.ndarray, image_size: int) -> None:
    """RuntimeError, as DALI's own, unless all (B, 3) shapes are as wanted; `find_faults` then says
    which are not."""
    if (shapes != (image_size, image_size, 3)).any():
        raise RuntimeError(f"images of shapes {np.unique(shapes, axis=0).tolist()}")


def pipeline_settings(
    batch_size: int, threads: int, device: torch.device, prefetch: int = PREFETCH
) -> dict[str, Any]:
    on_gpu = device.type != "cpu"
    return {
        "batch_size": batch_size,
        "num_threads": threads,
        "device_id": (device.index or 0) if on_gpu else None,
        "prefetch_queue_depth": prefetch,
        "exec_dynamic": True,  # outputs may outlive the next run, so they are handed over uncopied
    }


def decoded(encoded: Any, decode: DecodeDevice) -> Any:
    where = "mixed" if decode == "gpu" else "cpu"
    # Not turned as EXIF may say: cropped and aligned faces are upright as they are stored, and
    # libjpeg does not turn them either.
    images = dali.fn.decoders.image(
        encoded, device=where, output_type=dali.types.RGB, adjust_orientation=False
    )
    return images.gpu() if decode == "hybrid" else images


def channels_last(images: Any, size: int) -> torch.Tensor:
    """DALI's (B, H, W, 3) as torch's (B, 3, H, W) in channels_last: the same bytes.

    Raises UserError for what is not uint8 of `size` pixels, as a recipe of one's own may leave it.
    """
    found = torch.from_dlpack(images.as_tensor())  # (B, H, W, 3)
    if found.dtype != torch.uint8 or found.shape[1:] != (size, size, 3):
        sides, kind = "×".join(map(str, found.shape[1:])), str(found.dtype).removeprefix("torch.")
        raise UserError(
            f"augment: its recipes make images of {sides}, {kind}, expected {size}×{size}×3, "
            "uint8. Where a recipe computes in another type, let its apply() end with "
            "dali.fn.cast_like(result, images)"
        )
    return found.permute(0, 3, 1, 2)
