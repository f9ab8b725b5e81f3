"""Who is who in a training set, by its embeddings: wrong labels, one person under two labels."""
