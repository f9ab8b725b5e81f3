"""How good a model is: from its embeddings to figures with their doubt."""
