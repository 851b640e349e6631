"""Pictures of measures. Not imported by the rest of `sepme.metrics`, which needs no matplotlib."""

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sepme.metrics.accuracy import ConfusionMatrix


def confusion_map(matrix: ConfusionMatrix, ax: Axes | None = None) -> Axes:
    """What images should show (rows) against what a classifier saw in them (columns), in percent.

    Columns of concepts that are neither asked for nor seen are left out.
    """
    shares = 100 * matrix.shares
    shown = [
        k for k, name in enumerate(matrix.names) if name in matrix.asked or shares[:, k].max() > 0
    ]
    names, shares = [matrix.names[k] for k in shown], shares[:, shown].numpy()
    rows, columns = shares.shape
    if ax is None:
        size = (2.8 + 0.48 * columns, max(2.8, 1.5 + 0.36 * rows))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row in range(rows if columns <= 15 else 0):
        for column in range(columns):
            if (share := shares[row, column]) > 0:
                ink = "white" if share > 60 else "black"
                text = "<1" if share < 0.5 else f"{share:.0f}"
                ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    numbers = matrix.counts.sum(1).tolist()
    labels = [f"{name} ({n})" for name, n in zip(matrix.asked, numbers, strict=True)]
    ax.set_xticks(range(columns), names, rotation=40, ha="right", fontsize=8.5)
    ax.set_yticks(range(rows), labels, fontsize=8.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="seen by the classifier", ylabel="asked for (images)")
    ax.figure.colorbar(drawn, ax=ax).set_label("% of the row's images", fontsize=8.5)
    return ax
