"""Kernels, one file each, with their fp64 references."""
