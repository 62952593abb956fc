"""Differentiation of tile IR."""
