"""BASED: short convolutions, Taylor linear attention and a small exact window, in one stack."""
