"""The model a user holds: from a folder to enhanced audio, at once or in blocks."""
