"""Image files as people have them."""

from __future__ import annotations

# What training decodes: packed as it is, whatever its bytes turn out to be.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
