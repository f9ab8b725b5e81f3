"""Where what a run tells goes: files that are appended to, TensorBoard, the console."""
