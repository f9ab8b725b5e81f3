"""Scores of comparisons → the figures that the field and NIST name, each with its doubt."""
