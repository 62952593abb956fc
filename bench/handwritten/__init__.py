"""Kernels as a Triton expert writes them by hand, to hold the generated ones against.

They follow the structure of Triton's tutorials 06 (fused attention) and 09 (persistent matmul),
and were written before anybody looked at what tkpy makes of the same algorithms.
"""
