"""How many identities fit on eight GPUs of 80 GB, as it is predicted:  python benchmarks/fits.py

Prints the table of docs/heads.md, which a test holds to it. Nothing is measured, and no GPU is
needed: the prediction is that of every run before its first step (training/planning/memory.py).
"""

from __future__ import annotations
