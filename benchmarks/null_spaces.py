"""Null spaces S of what is kept, by four ways: seconds, rank of A, and what leaks, `||A S||_2`.

    python benchmarks/null_spaces.py     # about a minute and a half; writes its table of README.md

A stacks the embeddings of the empty prompt and of 1, 5 or 8 of the paper's names, 77 rows each,
from Stable Diffusion 1.x's text encoder with random weights, 768 wide. The paper's protocol asks
for its exact null space. The authors' code asks sympy for it: `Matrix.nullspace()`, a symbolic
elimination, on Python's floats. That takes a minute for 48 rows, and with the square of their
number, so it gets the first 48 rows of A alone; the others solve these as well. `svd` and
`elimination` are `sepme.nullspace.null_space` at its default tolerance, in float64 like the others.
"""

from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Annotated

import pandas as pd
import scipy.linalg
import torch
import typer
from _machine import backbone, hardware, now
from _markdown import markdown, write_between
from torch import Tensor

from sepme.course.chapter import PAPER_STYLES
from sepme.nullspace import null_space


def by_sympy(A: Tensor) -> Tensor:
    """Solutions as columns, `[d_in, free]`, scaled to unit length as in eq. 8."""
    from sympy import Matrix

    found = Matrix(A.tolist()).nullspace()
    S = torch.tensor([[float(x) for x in solution] for solution in found], dtype=torch.float64).T
    return S / S.norm(dim=0)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "sympy": by_sympy,
    "elimination": lambda A: null_space(A, method="elimination").basis,
    "svd": lambda A: null_space(A).basis,
    "scipy.linalg.null_space": lambda A: torch.from_numpy(scipy.linalg.null_space(A.double())),
}


def main(
    rows_of_sympy: Annotated[int, typer.Option(help="How many rows sympy gets.")] = 48,
    repeats: Annotated[int, typer.Option(help="Every figure is the median of so many.")] = 5,
) -> None:
    embeddings = backbone("sd14").encode(["", *PAPER_STYLES]).cpu()
    sets = {f"first {rows_of_sympy} rows": embeddings[0, :rows_of_sympy]}
    sets |= {f'"" and {n} name(s)': embeddings[: n + 1].flatten(0, 1) for n in (1, 5, 8)}
    rows = []
    for what, A in sets.items():
        for way, solve in WAYS.items():
            row = {"A": what, "rows": str(len(A)), "by": way}
            if way == "sympy" and (len(A) > rows_of_sympy or not find_spec("sympy")):
                rows.append(row | dict.fromkeys(("seconds", "rank", "leaks"), "not run"))
                continue
            seconds = []
            for _ in range(1 if way == "sympy" else repeats):
                start = now()
                S = solve(A)
                seconds.append(now() - start)
            leaks = float(torch.linalg.matrix_norm(A.double() @ S, 2))
            row |= {"seconds": f"{median(seconds):.3f}", "rank": str(A.shape[1] - S.shape[1])}
            rows.append(row | {"leaks": f"{leaks:.1e}"})
            print(rows[-1], flush=True)
    write_between("null_spaces", f"{markdown(pd.DataFrame(rows))}\n\n{hardware()}")


if __name__ == "__main__":
    typer.run(main)
