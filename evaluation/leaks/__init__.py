"""Is the test in the training set? The same images, near copies of them, and the same people."""
