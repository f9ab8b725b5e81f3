"""From a configuration to a trained model: step, precision, checkpoints, metrics, loop."""
