"""Bytes <-> our parameter names: files, layouts, detection. No file ever runs code."""
