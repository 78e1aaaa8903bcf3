"""Grids: one request drawn many times, two or three of its fields varied, on one labelled sheet."""
