"""Makes this folder's helpers importable from every test."""
