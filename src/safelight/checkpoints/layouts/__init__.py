"""Namings of the same weights: one module per family of files, each a program that makes pairs from a config."""
