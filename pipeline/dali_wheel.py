"""Which wheel of NVIDIA DALI to install; it asks nothing of the environment, not even torch."""

from __future__ import annotations

CUDA_12, CUDA_13 = WHEELS = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")


def dali_wheel(cuda: str | None) -> str:
    """Its name for torch's or the driver's CUDA, such as "12.8".

    Where there is none, empty or None, the older one, which needs no GPU.
    """
    return CUDA_13 if cuda and int(cuda.partition(".")[0]) >= 13 else CUDA_12
