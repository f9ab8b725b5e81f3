"""A training set on disk: its files and what they say."""
