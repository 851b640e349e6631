"""Chapter 07: roles, Wilson's interval, FID on a line, and FID of infinitely many images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import binomtest, norm

from sepme.course.checks._reply import as_number, as_tensor, checks, compare, require
from sepme.scenes.protocol import ROLES

#: Erased sets up to now, a concept, and its role (by hand).
STORIES = (
    ([{0, 1}], 0, "erased"),
    ([{0, 1}], 2, "regular"),
    ([{0, 1}, {1}], 0, "recovered"),
    ([{0, 1}, {1}, {1, 2}], 0, "recovered"),
    ([{0}, {1}, {0}], 1, "recovered"),
    ([{0}, {1}, {0, 2}], 0, "erased"),
    ([{0}, {1}, {0, 2}], 3, "regular"),
)


@checks
def role(answer: Callable[[Sequence[set[int]], int], str]) -> None:
    """`role(history, index)` is the role after the last of the erased sets."""
    known = {
        ("erased", "recovered"): "is erased (again): what is erased now comes first",
        ("recovered", "regular"): "was erased once and is back: look at the whole history",
    }
    for history, index, true in STORIES:
        said = answer([set(erased) for erased in history], index)
        require(said is not None, "The role came back as None: did you forget `return`?")
        require(said in ROLES, f"A role is one of {', '.join(ROLES)}; yours is {said!r}.")
        told = known.get((true, said), f"is {true}, not {said}")
        require(said == true, f"After {', then '.join(map(str, history))}, concept {index} {told}.")


@checks
def wilson(answer: Callable[[int, int], tuple[float, float]]) -> None:
    """`wilson(k, n)` are the ends of Wilson's 95 % interval for k hits of n, as shares."""
    z = float(norm.ppf(0.975))
    for k, n in ((0, 100), (100, 100), (38, 100), (1, 7), (124, 250)):
        ends = answer(k, n)
        pair = isinstance(ends, Sequence) and len(ends) == 2
        require(pair, "Return two numbers, the lower end and the upper one.")
        found = torch.stack([as_tensor(end, (), "an end of the interval") for end in ends])
        low, high = binomtest(k, n).proportion_ci(0.95, method="wilson")
        true = torch.tensor([low, high], dtype=torch.float64)
        half = z * (k / n * (1 - k / n) / n) ** 0.5
        wald = torch.tensor([k / n - half, k / n + half])
        mistakes = {
            "Those are percents: give shares.": 100 * true,
            "The lower end comes first.": true.flip(0),
            "That is Wald's interval: Wilson's has z^2 / n in three places.": wald,
            "The denominator 1 + z^2 / n is missing.": true * (1 + z**2 / n),
        }
        yours = "from {:.4f} to {:.4f}".format(*found.tolist())
        otherwise = f"Of {k} in {n} it goes from {low:.4f} to {high:.4f}, not {yours}."
        compare(found, true, mistakes, otherwise, tolerance=1e-3)  # 1.96 will do for z


@checks
def frechet(answer: Callable[[float, float, float, float], float]) -> None:
    """`frechet(mean_a, var_a, mean_b, var_b)` is the Fréchet distance of Gaussians on a line."""
    for a, u, b, v in ((0.0, 1.0, 3.0, 1.0), (0.0, 1.0, 0.0, 4.0), (-1.0, 0.25, 2.0, 9.0)):
        found = as_number(answer(a, u, b, v), "the distance")
        means, spreads = (a - b) ** 2, (u**0.5 - v**0.5) ** 2
        true = means + spreads
        mistakes = {
            "That is the root: FID is the squared distance.": true**0.5,
            "The means alone are compared: two spreads differ as well.": means,
            "The spreads alone are compared: add the squared distance of the means.": spreads,
            "Square the difference of the roots, not of the variances.": means + (u - v) ** 2,
        }
        told = f"For N({a:g}, {u:g}) and N({b:g}, {v:g}) the distance is {true:g}, not {found:g}."
        compare(found, true, mistakes, told)


@checks
def limit(answer: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """`limit(sizes, fids)` extrapolates `fid = limit + c / n` by least squares."""
    n = np.array([50.0, 100.0, 200.0, 400.0])
    for start, c, noise in ((0.0, 800.0, 0.0), (12.0, 300.0, 0.0), (5.0, 500.0, 0.2)):
        fids = start + c / n + noise * np.array([1, -1, -1, 1])
        slope, true = _line(1 / n, fids)
        found = as_number(answer(n.tolist(), fids.tolist()), "the limit")
        if abs(found - true) <= 1e-3 * c / n[0]:  # the limit itself may be 0
            continue
        mistakes = {
            "That is c, the slope: the limit is the intercept.": slope,
            "The largest set is still biased, go on to 1 / n = 0.": fids[-1],
            "A line through two of them leaves the others out.": _line(1 / n[-2:], fids[-2:])[1],
            "You fitted a line in n: fit it in 1 / n.": _line(n, fids)[1],
        }
        told = f"For {n.tolist()} and {fids.round(3).tolist()}"
        otherwise = f"{told} the line in 1 / n ends at {abs(true):.4g}, not at {found:.4g}."
        compare(found, true, mistakes, otherwise)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept by least squares, the intercept without rounding noise."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), round(float(intercept), 9)
