"""Chapter 07: roles, Wilson's interval, FID on a line, and FID of infinitely many images."""

from collections.abc import Callable, Sequence

import torch
from scipy.stats import binomtest, norm

from sepme.course.checks.feedback import as_tensor, check, near, require
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
#: Wilson's ends may be computed with 1.96 or with the exact quantile.
ROUGHLY = 1e-3
CASES = ((0, 100), (100, 100), (38, 100), (1, 7), (124, 250))


@check
def check_role(role: Callable[[Sequence[set[int]], int], str]) -> None:
    """`role(history, index)` is the role after the last of the erased sets."""
    for history, index, expected in STORIES:
        answer = role([set(erased) for erased in history], index)
        told = f"After {', then '.join(map(str, history))}, concept {index}"
        require(answer is not None, "The role came back as None: did you forget `return`?")
        require(answer in ROLES, f"A role is one of {', '.join(ROLES)}; yours is {answer!r}.")
        require(
            not (expected == "erased" and answer == "recovered"),
            f"{told} is erased (again): what is erased now comes before what was.",
        )
        require(
            not (expected == "recovered" and answer == "regular"),
            f"{told} was erased once and is back: look at the whole history, not only at its end.",
        )
        require(answer == expected, f"{told} is {expected}, not {answer}.")


@check
def check_wilson(wilson: Callable[[int, int], tuple[float, float]]) -> None:
    """`wilson(k, n)` are the ends of Wilson's 95 % interval for k hits of n, as shares."""
    for k, n in CASES:
        ends = wilson(k, n)
        require(
            isinstance(ends, Sequence) and len(ends) == 2,
            "Return two numbers, the lower end and the upper one.",
        )
        answer = torch.stack([as_tensor(end, (), "an end of the interval") for end in ends])
        interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
        expected = torch.tensor([interval.low, interval.high], dtype=torch.float64)
        if near(answer, expected, ROUGHLY):
            continue
        told = f"Of {k} in {n}"
        require(not near(answer, 100 * expected, ROUGHLY), "Those are percents: give shares.")
        require(not near(answer, expected.flip(0), ROUGHLY), "The lower end comes first.")
        require(
            not near(answer, _wald(k, n), ROUGHLY),
            f"{told} that is Wald's interval: Wilson's has z^2 / n in the centre, under the root "
            "and in the denominator.",
        )
        require(
            not near(answer, expected * (1 + norm.ppf(0.975) ** 2 / n), ROUGHLY),
            "The denominator 1 + z^2 / n is missing.",
        )
        require(
            False,
            f"{told} Wilson's interval goes from {interval.low:.4f} to {interval.high:.4f}, not "
            f"from {float(answer[0]):.4f} to {float(answer[1]):.4f}.",
        )


def _wald(k: int, n: int) -> torch.Tensor:
    p = torch.tensor(k / n, dtype=torch.float64)
    half = norm.ppf(0.975) * (p * (1 - p) / n).sqrt()
    return torch.stack([p - half, p + half])


@check
def check_frechet(frechet: Callable[[float, float, float, float], float]) -> None:
    """`frechet(mean_a, var_a, mean_b, var_b)` is the Fréchet distance of Gaussians on a line."""
    for a, u, b, v in ((0.0, 1.0, 3.0, 1.0), (0.0, 1.0, 0.0, 4.0), (-1.0, 0.25, 2.0, 9.0)):
        answer = float(as_tensor(frechet(a, u, b, v), (), "the distance"))
        expected = (a - b) ** 2 + u + v - 2 * (u * v) ** 0.5
        told = f"For N({a:g}, {u:g}) and N({b:g}, {v:g})"
        require(
            near(answer, expected) or not near(answer, expected**0.5),
            f"{told} that is the root: FID is the squared distance.",
        )
        require(
            near(answer, expected) or not near(answer, (a - b) ** 2),
            f"{told} the means alone are compared: two spreads differ as well.",
        )
        require(
            near(answer, expected) or not near(answer, expected - (a - b) ** 2),
            f"{told} the spreads alone are compared: add the squared distance of the means.",
        )
        require(
            near(answer, expected) or not near(answer, (a - b) ** 2 + (u - v) ** 2),
            f"{told} you square the difference of the variances: it is that of their roots.",
        )
        require(
            near(answer, expected),
            f"{told} the distance is {expected:g}, not {answer:g}: on a line the trace is the "
            "number itself.",
        )


@check
def check_limit(limit: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """`limit(sizes, fids)` extrapolates `fid = limit + c / n` by least squares."""
    sizes = [50.0, 100.0, 200.0, 400.0]
    for true, c, noise in ((0.0, 800.0, 0.0), (12.0, 300.0, 0.0), (5.0, 500.0, 0.2)):
        signs = (1, -1, -1, 1)
        fids = [true + c / n + noise * s for n, s in zip(sizes, signs, strict=True)]
        x, y = (torch.tensor(v, dtype=torch.float64) for v in ([1 / n for n in sizes], fids))
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        expected = round(float(y.mean() - slope * x.mean()), 9)
        answer = float(as_tensor(limit(list(sizes), list(fids)), (), "the limit"))
        if abs(answer - expected) <= ROUGHLY * c / sizes[0]:
            continue
        told = f"From {', '.join(f'{f:.3g} with {n:g}' for n, f in zip(sizes, fids, strict=True))}"
        require(not near(answer, slope), "That is c, the slope: the limit is the intercept.")
        require(
            not near(answer, fids[-1]),
            f"{told}: the largest set is still biased, go on to 1 / n = 0.",
        )
        last = fids[-1] - (fids[-2] - fids[-1]) / (x[-2] - x[-1]) * x[-1]
        require(
            not near(answer, last), f"{told}: a line through two of them leaves the others out."
        )
        line = torch.tensor(sizes, dtype=torch.float64)
        tilt = ((line - line.mean()) * (y - y.mean())).sum() / (line - line.mean()).square().sum()
        require(
            not near(answer, y.mean() - tilt * line.mean()),
            "You fitted a line in n, and the intercept is at n = 0: fit it in 1 / n.",
        )
        require(
            False, f"{told} the line in 1 / n ends at {expected + 0.0:.4g}, not at {answer:.4g}."
        )
