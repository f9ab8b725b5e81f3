"""Forms in which sets of faces lie, other than .rec: only an index is made, nothing is packed."""
