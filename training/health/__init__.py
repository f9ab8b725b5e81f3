"""Is a run healthy? What its own metrics show, and what was to be expected of them."""
