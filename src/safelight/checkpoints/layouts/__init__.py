"""Namings of the same weights: one module per family of files, each makes its pairs from a config."""
