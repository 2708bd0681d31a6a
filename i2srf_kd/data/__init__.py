"""Kaldi data folders, formatting, reports, training chunks and their augmentation."""
