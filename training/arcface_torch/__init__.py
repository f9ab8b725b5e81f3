"""Runs of arcface_torch: its configurations, logs and checkpoints of any number of ranks."""
