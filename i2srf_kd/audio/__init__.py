"""Reading, writing, resampling and measuring audio, without torch."""
