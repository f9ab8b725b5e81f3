"""Before a run: the memory that it will take, and a try in small."""
