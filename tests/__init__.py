"""The tests of sepme. It is imported first: it lets torchvision, hence diffusers, be imported."""

import sepme  # noqa: F401
