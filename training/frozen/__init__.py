"""Networks that are not trained: opened from whatever they are in, for teachers and evaluation."""
