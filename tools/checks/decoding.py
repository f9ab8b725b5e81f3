"""Whether an image comes out of what decodes: libjpeg-turbo, and DALI on the CPU and on a GPU."""

from __future__ import annotations

import base64
import importlib
from functools import partial
from typing import Any

from tools.checks.apart import ApartError, apart
from tools.checks.driver import read_driver
from tools.checks.finding import INSTALL, Finding, fails, note, ok
from tools.checks.packages import installed, installed_dali

_SECONDS = 120
# 16×16 pixels of one color.
COLOR = (200, 60, 120)
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4R"
    "DgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/wAARCAAQABADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAA"
    "AAb/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAABQj/xAAUEQEAAAAAAAAAAAAAAAAA"
    "AAAA/9oADAMBAAIRAxEAPwCMAIKtf//Z"
)


def check_jpeg() -> Finding:
    """What decodes wherever DALI does not."""
    import simplejpeg

    _compare(simplejpeg.decode_jpeg(JPEG, colorspace="RGB"))
    return ok("jpeg", "simplejpeg decodes")


def check_dali() -> list[Finding]:
    if not (wheel := installed_dali()):
        return [
            note(
                "dali",
                "it is not installed: no recipe but flip, and no decoding on the GPU",
                INSTALL,
            )
        ]
    gpus = apart(read_driver, seconds=_SECONDS).gpus
    found = [_try(f"{wheel} {installed(wheel)} decodes on the CPU", "cpu", None)]
    return found + [_try(f"decodes on gpu {gpu}", "mixed", gpu) for gpu in range(gpus)]


def _try(what: str, decoder: str, gpu: int | None) -> Finding:
    try:
        apart(partial(_decode, decoder, gpu), seconds=_SECONDS)
    except ApartError as error:
        if gpu is None:
            remedy = "install its wheel again; until then train with data.augment=[flip] or []"
            return fails("dali", f"{what}: no: {error}", remedy)
        remedy = "train with data.decode=hybrid; the wheel for this CUDA: doctor.py --install"
        return note("dali", f"{what}: no: {error}", remedy)
    return ok("dali", what)


def _decode(decoder: str, gpu: int | None) -> None:
    import numpy as np

    dali: Any = importlib.import_module("nvidia.dali")  # itself: pipeline.dali needs torch
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=gpu)
    with pipeline:
        encoded = dali.fn.external_source(source=lambda: [np.frombuffer(JPEG, np.uint8)], ndim=1)
        pipeline.set_outputs(
            dali.fn.decoders.image(encoded, device=decoder, output_type=dali.types.RGB)
        )
    pipeline.build()
    (images,) = pipeline.run()
    _compare(np.asarray((images if gpu is None else images.as_cpu())[0]))


def _compare(image: Any) -> None:
    """Raises ValueError unless it has the color everywhere, (16, 16, 3)."""
    if image.shape != (16, 16, 3) or (abs(image.astype(int) - COLOR) > 6).any():
        raise ValueError(f"decoded to {image.shape}, first {image[0, 0]}, expected {COLOR}")
