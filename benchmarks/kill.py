"""A command that is killed at any moment, and started again, ends as if it had never been killed.

    python benchmarks/kill.py                                    # everything: about an hour
    python benchmarks/kill.py erase course --signals KILL --kills 3

Each command runs once to its end. Then, for each signal, it runs in a folder of its own, is killed
at a random moment after its imports, runs again in the same folder, is killed again, and at last
runs to its end. All files there must have the bytes of the first run, and there must be no others.
Only "seconds" in JSON files may differ. A run that ends before it is killed is compared as well,
does not count as killed, and the next one begins in another folder.
"""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import typer

TEACHER = Path(__file__).resolve().parent.parent / "notebooks" / "teacher"
#: What is typed in an empty folder. The options make the commands as short as they can be.
COMMANDS = {
    "erase": ["erase", "neon", "--preset", "from_zero"],
    "closed": ["erase", "neon, boat", "--closed-form"],
    "course": ["course", "build", "--teacher", str(TEACHER)],
    "figures": ["figures", "--only", "alone_style, watermark_style, before_after_style_scene1"],
    "tables": ["figures", "--only", "watermark_object"],
    "scenes": ["scenes", "run", "--quick", "--scenes", "Alone0", "--images", "4"],
    "demo": ["demo", "--erase", "neon", "--samples", "2", "--retained", "2"],
}
#: Those that go on from where they were killed, so that ten kills are spread over one run.
RESUMED = ("erase", "scenes")
#: Runs for each kill that was asked for: some end before they are killed.
TRIES = 10
#: What commands do first; building the course needs no model.
LOADING = "from sepme.model import Backbone; import sepme.cli; Backbone.load()"
LIGHT = "import sepme.cli, sepme.course.build"
END = "; import os; os._exit(0)"  # without what Python does when it ends


@dataclass
class Run:
    """How a command ended."""

    code: int
    said: str
    """On stderr."""
    seconds: float
    """Of the processor, after its imports, or after it first wrote something."""


def seen(folder: Path) -> dict[Path, tuple[int, int]]:
    """What is in a folder, and when it was written."""
    found = {}
    for path in folder.rglob("*"):
        try:
            about = path.stat()
        except FileNotFoundError:  # a temporary name, gone again
            continue
        found[path] = (about.st_mtime_ns, about.st_size)
    return found


def loading(imports: str) -> float:
    """Seconds of the processor that they take."""
    start = os.times()
    subprocess.run([sys.executable, "-c", imports + END], check=True)
    return sum(os.times()[2:4]) - sum(start[2:4])


def used(process: psutil.Popen) -> float:
    """Seconds of the processor so far; other programs on the machine do not count."""
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:  # it has just ended
        return math.inf


def heed_ctrl_c() -> None:
    """What runs in the background of a shell ignores SIGINT, and so does what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(words: list[str], folder: Path, loading: float, kill: tuple[int, float] | None) -> Run:
    """Run a command in a folder; after so many seconds of work it gets a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    log, before = folder.parent / "stderr", seen(folder)
    with log.open("w") as stderr:
        process = psutil.Popen(
            [sys.executable, "-m", "sepme", *words],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            preexec_fn=heed_ctrl_c,
        )
    while process.poll() is None and used(process) < loading and seen(folder) == before:
        time.sleep(0.01)
    begin = end = used(process)
    number, delay = kill or (0, math.inf)
    while process.poll() is None and (now := used(process)) < begin + delay:
        end = now
        time.sleep(0.01)
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        process.send_signal(number)
    return Run(process.wait(), log.read_text(), end - begin)


def files(folder: Path) -> dict[str, bytes]:
    """What is left of a run: its files, and its empty folders."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
            if path.suffix == ".json":
                found[name] = json.dumps(timeless(json.loads(found[name]))).encode()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def timeless(content: Any) -> Any:
    """JSON values without what a clock measured."""
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key != "seconds"}
    return content


def differences(folder: Path, reference: dict[str, bytes]) -> list[str]:
    """Names of files that are missing, left over, or other than in the reference."""
    found = files(folder)
    return sorted(name for name in {*found, *reference} if found.get(name) != reference.get(name))


@dataclass
class Outcome:
    """What became of a chain of kills."""

    kills: int = 0
    finished: int = 0
    """Runs that ended before they were killed."""
    wrong: tuple[str, ...] = ()
    """What should not have happened, in words."""


class Kills:
    """A command, its reference, and chains of kills."""

    def __init__(self, words: list[str], folder: Path, loading: float = math.inf) -> None:
        self.words, self.folder, self.loading = words, folder, loading
        whole = run(words, folder / "reference" / "run", loading, None)
        if whole.code:
            raise SystemExit(f"{words}: the reference ended with {whole.code}. {whole.said}")
        self.seconds, self.reference = whole.seconds, files(folder / "reference" / "run")

    def chain(self, signals: Sequence[signal.Signals], seed: int = 0) -> Outcome:
        """Kill the command with one signal after the other in one folder; let it end at last.

        A run that ends before its signal comes is tried again, at most `TRIES` times as often as
        there are signals.
        """
        choose = random.Random(f"{seed} {self.words} {signals}")
        resumed = self.words[0] in RESUMED
        longest = self.seconds * (min(1, 2 / len(signals)) if resumed else 1)
        outcome, wrong = Outcome(), []
        folders = (self.folder / f"{signals[0].name} {n}" / "run" for n in itertools.count())
        folder = next(folders)
        left = list(signals)
        while left and outcome.kills + outcome.finished < TRIES * len(signals):
            which = left[0]
            ended = run(self.words, folder, self.loading, (which, choose.uniform(0, longest)))
            wrong += complaints(ended, which)
            if ended.code == 0:
                outcome.finished += 1
                if not resumed:  # faster than the reference: the machine is less busy now
                    longest = min(longest, ended.seconds)
                wrong += differences(folder, self.reference)
                folder = next(folders)
            else:
                outcome.kills += 1
                left.pop(0)
        last = run(self.words, folder, self.loading, None)
        wrong += [f"the last run ended with {last.code}: {last.said}"] if last.code else []
        outcome.wrong = (*wrong, *differences(folder, self.reference))
        return outcome


def complaints(ended: Run, which: signal.Signals) -> Iterator[str]:
    """What a killed process must not do. Ctrl-C is answered with a sentence and the code 130.

    A shell says 130 also of what SIGINT ended. That is how Python itself ends when Ctrl-C came
    while a string was executed, as a dataclass does when it is defined.
    """
    by_ctrl_c = (130, -signal.SIGINT)
    if ended.code not in (0, *(by_ctrl_c if which == signal.SIGINT else (-which,))):
        yield f"code {ended.code}: {ended.said[-500:]}"
    if "Traceback" in ended.said:
        yield f"a traceback: {ended.said[-500:]}"
    if ended.code in by_ctrl_c and "sepme: Interrupted" not in ended.said.strip().splitlines()[-1]:
        yield f"no sentence: {ended.said[-500:]}"


def main(
    commands: Annotated[list[str] | None, typer.Argument(help=", ".join(COMMANDS))] = None,
    signals: Annotated[str, typer.Option(help="With commas between.")] = "KILL,TERM,INT",
    kills: Annotated[int, typer.Option(min=1, help="Kills a command and signal.")] = 10,
    seed: Annotated[int, typer.Option(help="Decides the moments.")] = 0,
) -> None:
    """Print a line a command and signal; end with code 1 if anything was wrong."""
    found: Counter[bool] = Counter()
    for name in commands or COMMANDS:
        with TemporaryDirectory() as folder:
            before = loading(LIGHT if name == "course" else LOADING)
            killed = Kills(COMMANDS[name], Path(folder), before)
            about = len(killed.reference), killed.loading, killed.seconds
            typer.echo("{}: {} files, {:.1f} s of imports, then {:.1f} s".format(name, *about))
            for word in signals.split(","):
                outcome = killed.chain([signal.Signals[f"SIG{word.strip()}"]] * kills, seed)
                found[bool(outcome.wrong)] += 1
                typer.echo(f"  {word}: {outcome.kills} killed, {outcome.finished} ended before")
                for sentence in outcome.wrong:
                    typer.echo(f"    WRONG {sentence}")
    raise typer.Exit(int(found[True] > 0))


if __name__ == "__main__":
    typer.run(main)
