"""VQ-VAE with the rotation trick: see README.md beside this file."""
