"""A data set's file copied from a network disk to a disk of the node, and read from there."""
