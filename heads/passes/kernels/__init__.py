"""The passes as Triton kernels, for NVIDIA GPUs: the same face as those in PyTorch."""
