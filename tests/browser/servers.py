"""Start a web server, wait until it answers, and leave nothing of it behind."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

#: Seconds until a server must answer, and until one that was told to end must be gone.
STARTING, ENDING = 60, 15
ROOT = Path(__file__).parent.parent.parent
ANSWERS = build_opener(ProxyHandler({})).open  # loopback goes through no proxy


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def settled_in(folder: Path) -> dict[str, str]:
    """An environment in which Jupyter reads and writes its own files in `folder` only."""
    places = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{place}": str(folder / place.lower()) for place in places}
    own |= {
        f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")
    }
    own["IPYTHONDIR"] = str(folder / "ipython")
    own["PYTHONPATH"] = str(ROOT)  # for `tests.gallery`
    # The kernels draw figures inline and open the shipped model, whatever is set outside.
    outside = os.environ.items()
    unset = {name for name, _ in outside if name == "MPLBACKEND" or name.startswith("SEPME_")}
    return {name: value for name, value in outside if name not in unset} | own


@contextmanager
def serving(
    command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]
) -> Iterator[psutil.Process]:
    """A server that answers at `url` within the block, and is gone with all its kernels after it.

    Args:
        command: starts the server; it gets a process group of its own.
        url: answered with a success once the server is ready.
        log: where its output goes.

    Raises:
        RuntimeError: it ended or did not answer in time; the message ends with its log.
    """
    with log.open("w") as output:
        started = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    process = psutil.Process(started.pid)
    try:
        _wait_for(url, started, log)
        yield process
    finally:
        _end(started, process)


def _wait_for(url: str, started: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and started.poll() is None:
        with suppress(URLError, ConnectionError, TimeoutError), ANSWERS(url, timeout=5):
            return
        time.sleep(0.05)
    what = "ended" if started.poll() is not None else f"did not answer within {STARTING} s"
    raise RuntimeError(f"The server at {url} {what}:\n{log.read_text()[-3000:]}")


def _end(started: subprocess.Popen, process: psutil.Process) -> None:
    """Ask the group to end, then make sure of everything that it had started.

    Kernels live in groups of their own, so they are looked up before their parent is gone.
    """
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        os.killpg(started.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=ENDING)
        for remaining in alive:
            with suppress(psutil.NoSuchProcess):
                remaining.kill()
        psutil.wait_procs(alive, timeout=1)
    started.wait()
