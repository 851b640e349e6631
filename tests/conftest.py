"""What every test shares: no network, one thread a worker, fixed seeds, two models."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a hub client
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the workers share the machine; a sum's bits depend on the threads

settings.register_profile("sepme", max_examples=200, deadline=None, derandomize=True)
settings.load_profile("sepme")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", help="a diffusers directory to test in place of the shipped model")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pipeline():
    """The miniature epsilon-predicting pipeline of `tests/tiny.py`: leave it as you found it."""
    from tests.tiny import make_tiny_pipeline

    return make_tiny_pipeline()


@pytest.fixture(scope="session")
def backbone(request: pytest.FixtureRequest):
    """The shipped model on the CPU: leave it as you found it."""
    from sepme.model import Backbone

    return Backbone.load(request.config.getoption("--model"), device="cpu")
