"""RecordIO bytes to batches on the device. Knows nothing of models."""
