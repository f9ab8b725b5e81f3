"""Triton kernels of networks, for NVIDIA GPUs."""
