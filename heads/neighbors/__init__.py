"""Hard negatives: beside random classes, those whose centers are near the batch's."""
