"""Corpora: Kaldi data folders, downloads, formatting, reports, synthetic audio and training chunks."""
