"""Signals, hangs and steps that come to nothing: how a run ends well, or goes back."""
