"""How models are judged: a protocol a file."""
