"""Published and synthetic corpora: downloading, finding, simulating and preparing them."""
