"""Weights to train on out of .onnx files of any exporter, found by the flow of data."""
