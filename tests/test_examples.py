"""Every example runs, and the third-party plug-in installs into a fresh environment and trains there."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(folder: Path, *command: str, cache: Path | None = None) -> str:
    """Run a command in a folder, and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if cache is not None:
        environment["MORPHEM_CACHE"] = str(cache)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_examples():
    assert len(SCRIPTS) >= 3


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs(script: Path, tmp_path: Path, sample_cache: Path):
    assert "python examples/" + script.name in script.read_text()
    printed = run(tmp_path, sys.executable, str(script), cache=sample_cache)
    assert printed.strip()


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a fresh environment that sees what is installed here and has the example as well."""
    folder = tmp_path_factory.mktemp("stranger")
    run(folder, sys.executable, "-m", "venv", "--without-pip", "env")
    python = folder / "env" / "bin" / "python"
    packages = run(folder, str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    here = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    lines = [f"import site; site.addsitedir({path!r})" for path in here]
    (Path(packages) / "installed_here.pth").write_text("\n".join(lines) + "\n")
    shutil.copytree(EXAMPLES / "vicreg_plugin", folder / "vicreg_plugin")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(folder, str(python), "-m", "pip", "install", *options, "./vicreg_plugin")
    shutil.rmtree(folder / "vicreg_plugin")
    return str(python)


def test_the_plugin_is_listed_with_its_package(fresh_python: str, tmp_path: Path):
    printed = run(tmp_path, fresh_python, "-m", "morphem", "plugins", "methods")
    (line,) = [line for line in printed.splitlines() if "vicreg" in line]
    assert line.split() == ["methods", "vicreg", "morphem-vicreg", "0.1.0", "morphem_vicreg:VICReg", "ok"]
    assert "dino" in printed


def test_the_plugin_lives_in_the_fresh_environment_alone(fresh_python: str, tmp_path: Path):
    code = "import importlib.util as u; found = u.find_spec('morphem_vicreg'); print(found and found.origin)"
    assert Path(run(tmp_path, fresh_python, "-c", code).strip()).is_relative_to(Path(fresh_python).parents[1])
    assert run(tmp_path, sys.executable, "-c", code).strip() == "None"


def test_the_plugin_keeps_the_contracts(fresh_python: str, tmp_path: Path):
    shutil.copy(EXAMPLES / "vicreg_plugin" / "test_vicreg.py", tmp_path)
    printed = run(tmp_path, fresh_python, "-m", "pytest", "-p", "no:cacheprovider", "test_vicreg.py")
    assert "2 passed" in printed


def test_the_plugin_trains_and_what_it_trained_embeds(fresh_python: str, tmp_path: Path, sample_cache: Path):
    shutil.copy(EXAMPLES / "vicreg_plugin" / "vicreg.yaml", tmp_path)
    command = [fresh_python, "-m", "morphem"]
    run(tmp_path, *command, "fit", "--config", "vicreg.yaml", cache=sample_cache)
    checkpoint = tmp_path / "runs/vicreg/version_0/checkpoints/last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["morphem"]["spec"]["name"] == "vicreg"
    assert saved["global_step"] > 0

    data = ["--model", str(checkpoint), "--data", "sample://tiny", "--combine", "mean", "--output", "features.parquet"]
    run(tmp_path, *command, "embed", *data, cache=sample_cache)
    assert (tmp_path / "features.parquet").is_file()

    # A run goes on from its checkpoint, also where the method is a stranger's.
    more = ["--trainer.max_epochs", "4", "--resume_override", "[trainer.max_epochs]", "--ckpt_path", str(checkpoint)]
    run(tmp_path, *command, "fit", "--config", "vicreg.yaml", *more, cache=sample_cache)
    again = torch.load(tmp_path / "runs/vicreg/version_1/checkpoints/last.ckpt", weights_only=True)
    assert again["global_step"] > saved["global_step"]
