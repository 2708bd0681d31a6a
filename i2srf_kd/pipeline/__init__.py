"""What the shell stages of a recipe leave to Python: their records, and how far they are. Starts at once, no torch."""
