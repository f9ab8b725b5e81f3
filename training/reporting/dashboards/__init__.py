"""Where the curves and pictures of a run are looked at: TensorBoard, and what log.also names."""
