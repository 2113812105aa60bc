"""The wheel and the sdist: what is in them, and that an installed wheel works outside the repository."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import other_tool

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=clean | environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel (made from the sdist, as a package index would) and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    # hatchling is in the development environment: an isolated build would have to download it again.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


def test_wheel_and_sdist_carry_everything(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "recipes").rglob("*") if path.is_file()}
    wanted = {f"teenytinyllama/{path}" for path in wanted if "__pycache__" not in path.parts}
    code = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "teenytinyllama").rglob("*.py")}
    assert len(wanted) > 20
    assert not (wanted | code) - names
    assert "teenytinyllama/py.typed" in names
    texts = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "teenytinyllama/data/sample").glob("*.yaml")}
    assert len(texts) == 4, "the texts of the embedded corpus"
    assert not texts - names
    pages = {"chat/chat_template.jinja", "chat/page.css", "people/voting.html"}
    assert {f"teenytinyllama/{name}" for name in pages} <= names
    assert not [name for name in names if name.startswith(("tests", "recipes"))]
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "recipes/pretrain.py",
        "tests/conftest.py",
        "LICENSE",
        "README.pt-BR.md",
        *texts,
    } <= inside
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def check_recipes(ttl: Path, python: Path, folder: Path) -> Path:
    """What a new user does first: a folder with the recipes, of the installed package. Returns the folder."""
    run(ttl, "init", "meu-modelo", cwd=folder)
    project = folder / "meu-modelo"
    assert (project / "recipes" / "accelerate" / "zero2.yaml").exists()
    where = run(python, "-c", "import teenytinyllama; print(teenytinyllama.__file__)", cwd=project).stdout
    assert "site-packages" in where
    return project


def check_first_model(ttl: Path, project: Path) -> None:
    """What comes then: a demo of a few steps, one card."""
    done = run(ttl, "demo", "--max_tokens", "24576", cwd=project, OMP_NUM_THREADS="1")
    assert "Reloaded as LlamaForCausalLM without this package" in done.stdout
    card = project / "runs" / "demo" / "base" / "README.md"
    written = card.read_text()
    card.unlink()
    run(ttl, "card", "runs/demo/base", cwd=project)
    assert card.read_text() == written


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_repository(built: Path, tmp_path: Path) -> None:
    """Its dependencies come from this environment; `test_an_empty_environment…` installs them as well."""
    import site

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).stdout.strip())
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # Behind the wheel on the path, and as plain lines: an editable install of this repository is not followed.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    project = check_recipes(venv / "bin" / "ttl", python, tmp_path)
    run(venv / "bin" / "ttl", "tokenizer", "--config", "recipes/configs/tiny/tokenizer.yaml", cwd=project)
    assert (project / "outputs" / "tiny" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.install
@pytest.mark.timeout(1500)
def test_an_empty_environment_gets_all_it_needs(built: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    constraints = tmp_path / "constraints.txt"
    constraints.write_text((REPOSITORY / "constraints.txt").read_text())
    (wheel,) = built.glob("*.whl")
    index = os.environ.get("TORCH_INDEX")
    torch = [line for line in constraints.read_text().splitlines() if line.startswith("torch==")]
    run(python, "-m", "pip", "install", "--quiet", *(["--index-url", index] if index else []), *torch, cwd=tmp_path)
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel, cwd=tmp_path)
    check_first_model(venv / "bin" / "ttl", check_recipes(venv / "bin" / "ttl", python, tmp_path))


def test_other_tools_are_skipped_unless_they_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TTL_REQUIRE_OTHER_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_tool is not installed"):
        other_tool("no_such_tool")
    monkeypatch.setenv("TTL_REQUIRE_OTHER_TOOLS", "1")
    with pytest.raises(
        pytest.fail.Exception, match="TTL_REQUIRE_OTHER_TOOLS is set, and no_such_tool is not installed"
    ):
        other_tool("no_such_tool")
    assert (
        "TTL_REQUIRE_OTHER_TOOLS=1 .venv/bin/python -m pytest -m other_tools"
        in (REPOSITORY / ".ci" / "run").read_text()
    )
