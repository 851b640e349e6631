"""What images are measured with."""

from sepme.metrics.lpips import alexnet_available, lpips_distance

__all__ = ["alexnet_available", "lpips_distance"]
