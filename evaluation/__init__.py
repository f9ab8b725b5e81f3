"""How good a model is: InsightFace's verification sets, and the curves of a run."""
