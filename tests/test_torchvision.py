"""torchvision is patched exactly where it cannot be imported, and left alone where it can."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Loads the module by its file, so that `import sepme` has not yet done the work.
DECLARE = (
    "import runpy;declare = runpy.run_path('sepme/_torchvision.py')['declare_missing_operators'];"
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter: operators, once declared, stay for the process."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_declares_operators_exactly_where_torchvision_cannot_be_imported() -> None:
    importable = python("import torchvision").returncode == 0
    run = python(DECLARE + "print(declare()); import torchvision; print(declare())")
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == ("[]" if importable else "['nms', 'qnms']")
    assert second == "[]"  # a second call finds nothing to do


def test_leaves_operators_that_exist_alone(tmp_path: Path) -> None:
    """Beside a torchvision without a library of its own, so that nothing else defines them."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    run = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "import torch;"
        "schema = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor';"
        "[torch.library.define(f'torchvision::{n}', schema) for n in ('nms', 'qnms')];"
        "torch.library.impl('torchvision::nms', 'CPU')(lambda dets, scores, iou: scores + 1);"
        + DECLARE
        + "print(declare());"
        "print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item())"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["[]", "1.0"]


def test_does_nothing_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    from sepme import _torchvision

    monkeypatch.setattr(_torchvision, "find_spec", lambda name: None)
    assert _torchvision.declare_missing_operators() == []


def test_importing_sepme_is_enough_for_the_libraries_that_need_torchvision() -> None:
    run = python("import sepme, lpips, diffusers.loaders, transformers.image_transforms")
    assert run.returncode == 0, run.stderr
