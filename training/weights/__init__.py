"""Weights from elsewhere: other runs, other programs, heads with other classes."""
