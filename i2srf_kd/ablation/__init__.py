"""Ablations: a grid file names cells, every cell is trained and scored with several seeds, one table compares them."""
