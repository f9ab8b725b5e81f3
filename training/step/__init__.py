"""A step: the backbone, its optimizer and precision, and what runs them on the device."""
