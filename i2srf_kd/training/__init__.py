"""What a training needs whoever drives it: checkpoints, guards, speed, records. Nothing of ESPnet."""
