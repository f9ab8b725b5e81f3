"""The two passes over the classes and the update of their rows: in PyTorch, and in Triton."""
