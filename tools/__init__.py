"""Commands: each a thin command line over the rooms."""
