"""A frozen teacher, and the loss that draws embeddings to its."""
