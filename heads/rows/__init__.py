"""A rank's rows of centers and momentum, in the form in which they are kept."""
