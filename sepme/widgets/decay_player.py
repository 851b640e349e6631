"""The decay player: what a concept adds to the noise, and how that fades in a training."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from textwrap import fill

from matplotlib.figure import Figure, SubFigure

from sepme.errors import SepmeError
from sepme.plots import BLACK, correlation_over_timesteps, literal, recorded_decay, show_picture
from sepme.probe import Recording, correlation_map, magnitude
from sepme.widgets._parts import MENU, Explorer, Report, Stopped, row

__all__ = ["decay_player"]


@dataclass(frozen=True)
class DecayState:
    """Where to look: which recording, after how many iterations, at which timestep."""

    recording: str
    iteration: int  #: one of the recording's `iterations`
    timestep: int  #: one of the recording's `timesteps`

    def place(self, recording: Recording) -> tuple[int, int]:
        """Index of the snapshot and of the timestep."""
        return recording.iterations.index(self.iteration), recording.timesteps.index(self.timestep)


def describe(state: DecayState, recording: Recording) -> str:
    """What the figure shows, in words."""
    snapshot, t = state.place(recording)
    now = recording.correlation[snapshot]
    return (
        f"“{recording.prompt}” after {state.iteration} iterations: the correlation with the "
        f"original is {now[t].mean():.2f} at timestep {state.timestep}, and {now.mean():.2f} on "
        "average over all timesteps."
    )


def render(state: DecayState, recording: Recording) -> Figure:
    """The maps of one moment above, and the moment's place in the two curves below."""
    snapshot, t = state.place(recording)
    figure = Figure(figsize=(10, 6.9), dpi=100, layout="constrained")
    moment = f"after {state.iteration} iterations, at timestep {state.timestep}"
    figure.suptitle(f"{state.recording} {moment}", fontsize=11)
    maps, curves = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    _maps(maps, recording, snapshot, t)
    over_iterations, over_timesteps = curves.subplots(1, 2)
    recorded_decay(recording, over_iterations)
    over_iterations.axvline(state.iteration, color=BLACK, linewidth=1)
    means = recording.correlation.mean(dim=2)  # [snapshots, timesteps]
    lines = {"at the start": means[0], f"after {state.iteration} iterations": means[snapshot]}
    correlation_over_timesteps(recording.timesteps, lines, over_timesteps)
    over_timesteps.axvline(state.timestep, color=BLACK, linewidth=1)
    low, high = float(means.min()), float(means.max())
    over_timesteps.set_ylim(min(low, 0) - 0.08, max(high, 1) + 0.08)  # the same at every moment
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0}
    for ax in (over_iterations, over_timesteps):
        ax.legend(frameon=False, fontsize=8, ncols=2, **above)
    return literal(figure)


def _maps(figure: SubFigure, recording: Recording, snapshot: int, t: int) -> None:
    """The picture, r before, r now on the same scale, and their product (eq. 2 at each pixel)."""
    axes = figure.subplots(1, 4)
    show_picture(axes[0], recording.image)
    axes[0].set_title(fill(f"“{recording.prompt}”", 24), fontsize=10)
    r0, r = recording.original[t], recording.maps[snapshot, t]
    most = float(correlation_map(r0, r0).max())
    size = {"cmap": "magma", "vmin": 0.0, "vmax": float(magnitude(r0).max())}
    product = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    maps = (
        ("|r| of the original", magnitude(r0), size),
        ("|r| now", magnitude(r), size),
        ("r now × r original", correlation_map(r, r0), product),
    )
    for ax, (title, values, look) in zip(axes[1:], maps, strict=True):
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
        drawn = ax.imshow(values.numpy(), interpolation="nearest", **look)
        scale = ax.inset_axes((0.1, -0.1, 0.8, 0.05))  # the picture, which has none, stays as large
        figure.colorbar(drawn, cax=scale, orientation="horizontal")


def decay_player(recordings: Mapping[str, Recording], *, threaded: bool = True) -> Explorer:
    """Move through the iterations and timesteps of recorded trainings.

    Args:
        recordings: name to what `sepme.probe.record` made.
        threaded: play beside the kernel's own loop, so that Stop is heard.

    Raises:
        SepmeError: no recording.
    """
    if not recordings:
        raise SepmeError("There is no recording to play: make one with sepme.probe.record.")

    def choose() -> None:
        """Another recording: its own iterations and timesteps, from the beginning."""
        recording = recordings[shell.recording.value]
        with shell.together():
            shell.iteration.options, shell.iteration.index = recording.iterations, 0
            timesteps = recording.timesteps
            twice = 1 + (len(timesteps) == 1)  # a slider has two ends, perhaps of one timestep
            shell.timestep.options, shell.timestep.index = timesteps * twice, len(timesteps) // 2

    def played(_: Report) -> str:
        """From here to the end, or from the beginning if this is the end."""
        last = len(shell.iteration.options) - 1
        start = shell.iteration.index if shell.iteration.index < last else 0
        with suppress(Stopped):
            for index in range(start, last + 1):
                shell.iteration.index = index
                shell.background.pause(shell.pause)
        return shell.picture.alt

    def play() -> None:
        shell.background.start(played, "Playing ...")

    task = {"data": lambda now: (recordings[now.recording],), "threaded": threaded, "alone": False}
    shell = Explorer("decay", DecayState, render, describe, **task)
    shell.pause = 0.7  # seconds between two iterations while it plays
    which, look = "Which recorded training", {"act": choose, "layout": MENU}
    noise = "How noisy: the last is nearly pure noise"
    menus = (
        shell.menu("recording", "Training", which, list(recordings), **look),
        shell.steps("iteration", "Iteration", "How long it was trained", (0, 0)),
        shell.steps("timestep", "Timestep", noise, (0, 0)),
    )
    # Not ipywidgets.Play, whose buttons have no name that a screen reader could say.
    shell.button("play", "Play", "Show one iteration after the other", play)
    shell.background.locked = (shell.recording, shell.iteration, shell.play)
    choose()
    return shell.arrange(row(*menus), row(shell.play, shell.stop))
