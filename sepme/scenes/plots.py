"""Figures of the scenes: bars by method and role, and who disturbs whom."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sepme.errors import SepmeError
from sepme.plots import BLACK, COLOURS, GREY
from sepme.scenes.summary import Bar, Key, methods_of

#: One colour a method of the comparison, which has eight.
FACES = (*COLOURS, GREY)
#: Hatches beside the colours, so that methods can be told apart in grey and by colour-blind eyes.
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo", "**")
ROLE_TITLES = {
    "erased": "erased",
    "recovered": "recovered",
    "regular": "regular",
    "watermark": "watermark",
}
MEASURE_TITLES = {
    "acc": "classifier accuracy, %",
    "lpips": "LPIPS against the original",
    "fid": "FID against the original",
    "kid": "KID against the original",
}


def method_style(index: int) -> dict[str, object]:
    """Colour and hatch of the index-th method."""
    return {
        "facecolor": FACES[index % len(FACES)],
        "hatch": HATCHES[index % len(HATCHES)],
        "edgecolor": "white",
    }


def role_bars(
    bars: Mapping[Key, Bar],
    measure: str,
    titles: Mapping[str, str],
    ax: Axes | None = None,
    *,
    styles: Mapping[str, dict[str, object]] | None = None,
) -> Axes:
    """Groups of bars, one group a role and one bar a method, with intervals where there are any.

    Args:
        bars: (method, role) -> its bar.
        measure: "acc", "lpips", "fid" or "kid"; an accuracy is drawn in percent.
        titles: method -> what the legend calls it.
        styles: method -> how its bars look, so that two figures can agree; see `method_style`.

    Raises:
        SepmeError: there is nothing to draw.
    """
    if not bars:
        raise SepmeError("There is no cell to draw: run the scenes first, or choose others.")
    ax = ax or Figure(figsize=(7, 3.4), layout="constrained").subplots()
    methods = methods_of(bars)
    roles = [role for role in ROLE_TITLES if any(r == role for _, r in bars)]
    width, scale = 0.8 / len(methods), 100 if measure == "acc" else 1
    highest = max(bar.mean for bar in bars.values())
    for i, method in enumerate(methods):
        style = (styles or {}).get(method) or method_style(i)
        for j, role in enumerate(roles):
            if (bar := bars.get((method, role))) is None:
                continue
            x = j + (i - (len(methods) - 1) / 2) * width
            error = None
            if bar.low is not None and bar.high is not None:
                error = scale * np.array([[bar.mean - bar.low], [bar.high - bar.mean]])
            ax.bar(
                x, scale * bar.mean, 0.92 * width, yerr=error, ecolor=BLACK, capsize=1.5, **style
            )
            if bar.mean < 0.01 * highest:  # else a bar of height 0 looks like none
                text = f"{scale * bar.mean:.2g}"
                ax.annotate(text, (x, 0), (0, 3), textcoords="offset points", rotation=90,
                            ha="center", va="bottom", fontsize=6)  # fmt: skip
    ax.set_xticks(range(len(roles)), [ROLE_TITLES[role] for role in roles])
    ax.set_ylabel(MEASURE_TITLES[measure])
    ax.set_ylim(0, 108 if measure == "acc" else None)
    ax.spines[["top", "right"]].set_visible(False)
    handles = [
        Patch(label=titles.get(m, m), **((styles or {}).get(m) or method_style(i)))
        for i, m in enumerate(methods)
    ]
    ax.legend(
        handles=handles,
        frameon=False,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        handlelength=2.2,
        handleheight=1.4,
    )
    return ax


def interference_table(
    matrix: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
) -> Axes:
    """What erasing one concept (row) does to the pictures of another (column), as a heat map.

    Args:
        matrix: `[rows][columns]`.
        label: what the numbers are.
        limit: where the colours end; by default the largest number.
    """
    values = np.asarray(matrix, dtype=float)
    if values.shape != (len(rows), len(columns)):
        raise SepmeError(
            f"The map has {values.shape[0]} x {values.shape[-1]} numbers for {len(rows)} rows and "
            f"{len(columns)} columns: give as many."
        )
    ax = ax or Figure(figsize=(6.4, 4), layout="constrained").subplots()
    limit = float(np.nanmax(values)) if limit is None else limit
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.0f}" if limit >= 10 else f"{value:.2f}"
            dark = value > 0.55 * limit
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel="what is drawn", ylabel="what was erased")
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax
