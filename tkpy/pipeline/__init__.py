"""Pipelines of asynchronous copies and products: the model, its checks, its timeline, its cost."""
