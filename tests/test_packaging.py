"""A wheel, an editable install and a wheel from the sdist behave alike, and pollute nothing.

Nothing is downloaded: hatchling builds from a copy of the clone, and each result is installed into
a bare environment that sees this environment's other packages.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = {".git", ".venv", "runs", "data", "dist", "build"}
BUILD = "import hatchling.build as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
PROBE = """
import importlib.util, json, sys
import lmdiff
from lmdiff import resources
found = {}
for name in ("agents", "prompts", "scripts", "tests", "docs"):
    spec = importlib.util.find_spec(name)
    found[name] = [] if spec is None else list(spec.submodule_search_locations or [spec.origin])
print(json.dumps({
    "lmdiff": lmdiff.__file__,
    "agents": resources.names("agents"),
    "prompts": resources.names("prompts"),
    "folder": str(resources.folder("agents")),
    "found": found,
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source") / "lmdiff"

    def ignore(folder: str, names: list[str]) -> set[str]:
        caches = {name for name in names if name.endswith("cache__") or name.endswith("_cache")}
        return caches | (NOT_SOURCE & set(names) if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, copy, ignore=ignore))


@pytest.fixture(scope="module")
def wheels(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three ways to an installation, as wheels."""
    out = tmp_path_factory.mktemp("built")

    def build(hook: str, folder: Path, name: str) -> Path:
        command = [sys.executable, "-c", BUILD, hook, str(out / name)]
        (out / name).mkdir()
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        return out / name / built.stdout.split()[-1]

    with tarfile.open(build("build_sdist", source, "tar")) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = out.glob("lmdiff-*")
    return {
        "wheel": build("build_wheel", source, "wheel"),
        "sdist": build("build_wheel", unpacked, "sdist"),
        "editable": build("build_editable", source, "editable"),
    }


def contents(wheel: Path) -> dict[str, int]:
    """File names in a wheel, with the checksum of each."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(
    source: Path, wheels: dict[str, Path]
) -> None:
    names = {name for name in contents(wheels["wheel"]) if ".dist-info/" not in name}
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "lmdiff").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    for kind in ("agents", "prompts"):
        files = [path for path in (source / kind).rglob("*") if path.is_file()]
        expected |= {f"lmdiff/_data/{path.relative_to(source).as_posix()}" for path in files}
    assert names == expected
    assert any(name.startswith("lmdiff/_data/agents/") for name in names)


def test_agents_and_prompts_are_data() -> None:
    for kind in ("agents", "prompts"):
        code = [path for path in (ROOT / kind).rglob("*") if path.suffix in (".py", ".so")]
        assert code == []


def test_the_sdist_gives_the_same_wheel(wheels: dict[str, Path]) -> None:
    assert contents(wheels["sdist"]) == contents(wheels["wheel"])


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_an_installation_finds_its_data_and_pollutes_nothing(
    kind: str, source: Path, wheels: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    scheme = {"base": str(home), "platbase": str(home)}
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    # Dependencies come from here. A path added by a .pth file does not run the .pth files in it, so
    # that an editable lmdiff of this environment stays out.
    (site / "00-dependencies.pth").write_text(sysconfig.get_path("purelib"))
    bin = Path(sysconfig.get_path("scripts", "venv", scheme))
    python = bin / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    offline = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, *offline, str(wheels[kind])], check=True)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    probe = subprocess.run(
        [str(python), "-c", PROBE], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert probe.returncode == 0, probe.stderr
    seen = json.loads(probe.stdout)
    package = source / "lmdiff" if kind == "editable" else site / "lmdiff"
    assert Path(seen["lmdiff"]).resolve() == (package / "__init__.py").resolve()
    for folder in ("agents", "prompts"):
        assert seen[folder] == sorted(path.stem for path in (ROOT / folder).glob("*.toml"))
    assert seen["agents"]
    assert ROOT not in Path(seen["folder"]).parents
    for name, places in seen["found"].items():
        ours = [place for place in places if Path(place).resolve().is_relative_to(tmp_path)]
        ours += [place for place in places if Path(place).resolve().is_relative_to(source)]
        assert ours == [], f"import {name} finds {ours}"
    assert seen["found"]["agents"] == []
    assert (bin / "lmdiff").exists()
