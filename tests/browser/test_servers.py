"""The servers of these tests come up when they are needed, and nothing of them stays."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.browser.servers import free_port, serving, settled_in

#: A server whose child has a process group of its own and does not listen, like a kernel.
WITH_A_CHILD = """
import http.server, subprocess, sys
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


def test_nothing_of_a_server_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.browser.servers.ENDING", 0.5)  # the child will not end by itself
    port = free_port()
    command = [sys.executable, "-c", WITH_A_CHILD, str(port)]
    with serving(command, f"http://127.0.0.1:{port}", tmp_path / "log", os.environ) as process:
        (child,) = process.children()
        assert works(child)
    assert not works(process)
    assert not works(child)


def works(process: psutil.Process) -> bool:
    """Whether it still runs; one that ended and that nobody has asked about yet does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such notebook')"]
    url = f"http://127.0.0.1:{free_port()}"
    before = psutil.Process().children()
    with (
        pytest.raises(RuntimeError, match="ended:\nno such notebook"),
        serving(command, url, tmp_path / "log", os.environ),
    ):
        pass
    assert psutil.Process().children() == before


def test_jupyter_stays_in_its_folder(tmp_path: Path) -> None:
    places = {v for k, v in settled_in(tmp_path).items() if k.startswith(("JUPYTER", "IPYTHON"))}
    assert len(places) >= 6
    assert all(Path(place).is_relative_to(tmp_path) for place in places)
