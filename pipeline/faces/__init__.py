"""Photographs to crops: where the faces are, by a list of landmarks or a detector of the user's."""
