"""Half-finished pictures: DDIM itself, and which timestep each official code says they have."""

import pytest
import torch
from torch import Tensor

from sepme.baselines.sampling import PAIRINGS, Grid, sample
from tests.miniature import PREDICTIONS, shared
from tests.tolerance import assert_close

STEPS, T = 50, 1000


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [3, 7])
def test_all_steps_are_what_the_pipeline_draws(prediction_type: str, steps: int) -> None:
    backbone = shared(prediction_type)
    drawn = backbone.generate(["neon", "boat"], 5, steps=steps, guidance=3.0, output="latents")
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    noise = torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in seeded])
    c, c_0 = backbone.encode(["neon", "boat"]), backbone.encode(["", ""])
    x = sample(backbone.epsilon, Grid(backbone, steps), noise, c, c_0, 3.0, range(steps))
    assert_close(x, drawn, scale=float(noise.abs().max()) * 10)


def test_no_step_is_pure_noise_and_one_step_by_hand() -> None:
    backbone = shared()
    grid = Grid(backbone, STEPS)
    x, c, c_0 = torch.randn(1, *backbone.latent_shape), *backbone.encode(["neon", ""])[:, None]
    assert torch.equal(sample(backbone.epsilon, grid, x, c, c_0, 3.0, range(0)), x)
    t = grid.timesteps[:1]
    eps_c, eps_0 = backbone.epsilon(x, t, c), backbone.epsilon(x, t, c_0)
    eps = eps_0 + 3.0 * (eps_c - eps_0)
    a, b = backbone.alphas_cumprod[981], backbone.alphas_cumprod[961]
    by_hand = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    after = sample(backbone.epsilon, grid, x, c, c_0, 3.0, range(1))
    assert_close(after, by_hand, scale=10 * float(by_hand.abs().max()))


@pytest.mark.parametrize("steps", [1, 7, STEPS])
def test_the_bins_cover_every_timestep_once(steps: int) -> None:
    grid = Grid(shared(), steps)
    assert [t for p in reversed(range(steps)) for t in range(*grid.bin(p))] == list(range(T))
    if steps == STEPS:  # as Stable Diffusion has it
        assert grid.timesteps.tolist() == list(range(981, 0, -20))
        assert (grid.bin(0), grid.bin(1), grid.bin(49)) == ((980, 1000), (960, 980), (0, 20))


def stands_at(pairing: str, p: int) -> int:
    """The timestep that a picture stopped at step p really has (0 if it is finished)."""
    done = PAIRINGS[pairing](p, STEPS)
    timesteps = [*range(981, 0, -20), 0]
    return timesteps[done.stop]


def told(p: int) -> range:
    return range(*Grid(shared(), STEPS).bin(p))


def test_where_each_official_code_stops() -> None:
    assert all(stands_at("aligned", p) in told(p) for p in range(STEPS))
    assert all(stands_at("grid", p) == 981 - 20 * p for p in range(STEPS))
    # SDD's code finishes the picture of its first bin.
    assert all(stands_at("until", p) in told(p) for p in range(1, STEPS))
    assert (stands_at("until", 0), told(0)) == (0, range(980, 1000))
    # ESD's original code leaves out 981, is two steps late, and finishes its last two pictures.
    assert all(PAIRINGS["compvis"](p, STEPS).start == 1 for p in range(STEPS))
    late = [(t - stands_at("compvis", p)) for p in range(STEPS - 2) for t in told(p)]
    assert (min(late), max(late)) == (39, 58)
    assert [stands_at("compvis", p) for p in (STEPS - 2, STEPS - 1)] == [0, 0]


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_network_is_asked_at_the_steps_that_are_done(pairing: str) -> None:
    grid, asked = Grid(shared(), STEPS), []

    def predict(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    done, _ = grid.draw(pairing, 2, generator)
    x, c = torch.randn(2, 4, 8, 8), torch.zeros(2, 10, 96)
    sample(predict, grid, x, c, c, 3.0, done)
    assert asked == [[int(grid.timesteps[i])] * 4 for i in done]


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_draws_reach_every_step(pairing: str) -> None:
    grid, generator = Grid(shared(), 5), torch.Generator().manual_seed(0)
    stops = [grid.draw(pairing, 3, generator) for _ in range(100)]
    assert {done for done, _ in stops} == {PAIRINGS[pairing](p, 5) for p in range(5)}
    for _, told in stops:
        assert told.shape == (3,)
        assert len({int(t) // 200 for t in told}) == 1  # of one bin
    exact = {int(t) for _, told in stops for t in told} <= {1, 201, 401, 601, 801}
    assert exact == (pairing == "grid")
