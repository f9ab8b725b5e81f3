"""Models that leave: written for other programs, and checked there before they are named."""
