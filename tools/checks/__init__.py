"""What tools/doctor.py looks at. Nothing here imports more than Python's own library at its top."""
