"""Checkpoints: what is in them, how they come to be complete, which one a run resumes from."""
