"""Separable multi-concept erasure for text-to-image diffusion models."""

from sepme.torchvision_ops import declare_missing_operators

declare_missing_operators()  # before anything imports torchvision

__version__ = "0.1.0"
