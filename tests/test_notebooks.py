"""The notebooks, executed in their two-minute variant; their badges; the job on Hugging Face's machines; the workflows."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from hub_server import HubServer

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("colab_t4", "classroom_cpu")
SLOWLY, QUICKLY = "DOIS_MINUTOS = False", "DOIS_MINUTOS = True"

sys.path.insert(0, str(REPOSITORY / "notebooks"))
import badges as badges_module  # noqa: E402


def read(name: str) -> Any:
    return nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_has_one_constant_for_two_minutes(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum(SLOWLY in cell.source for cell in code) == 1
    assert (REPOSITORY / "notebooks" / f"{name}.ipynb").stat().st_size < 50_000
    assert notebook.cells[0].source.startswith("<!-- badges -->")
    assert "http" not in notebook.cells[0].source  # none without an address
    for cell in code:
        ast.parse(re.sub(r"^( *)%pip.*$", r"\1pass", cell.source, flags=re.M))


def test_the_notebook_for_a_t4_says_what_was_not_measured_and_ends_in_time() -> None:
    text = "\n".join(cell.source for cell in read("colab_t4").cells)
    assert "não tinha uma T4" in text
    assert "HORAS = 0.03 if DOIS_MINUTOS else 5.5" in text
    assert '"lr_scheduler_type": "warmup_stable_decay"' in text
    assert '"max_hours": HORAS' in text
    assert "/content/drive/MyDrive/" in text
    assert "/kaggle/working/" in text


def test_the_long_recipe_of_the_notebook_is_a_valid_run_of_20_million_parameters(tmp_path: Path) -> None:
    from teenytinyllama.arguments import build
    from teenytinyllama.presets import PRESETS, count_parameters
    from teenytinyllama.training.config import PretrainConfigBeforePacking

    (cell,) = [cell for cell in read("colab_t4").cells if "receita =" in cell.source]
    source = cell.source.partition('(PASTA / "receita.yaml")')[0]
    names: dict[str, Any] = {"PASTA": tmp_path, "DOIS_MINUTOS": False, "HORAS": 5.5, "COMECO": "O Brasil é"}
    exec(source, names)
    recipe = names["receita"]
    build(PretrainConfigBeforePacking, {**recipe, "context": 512, "use_cpu": True})
    assert set(recipe["shape"]) <= {*PRESETS["tiny"].__dataclass_fields__}
    shape = replace(PRESETS["tiny"], vocab_size=16_000, **recipe["shape"])
    assert 20e6 < count_parameters(shape) < 21e6


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_first_cell_to_its_last(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    for cell in notebook.cells:
        cell.source = cell.source.replace(SLOWLY, QUICKLY)
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert len(shown) < 60_000
    (folder,) = tmp_path.glob("**/base")
    assert (folder / "model.safetensors").is_file()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    rates = [json.loads(line).get("learning_rate") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert min(rate for rate in rates if rate is not None) < 1e-3, last  # it ended decayed


def test_badges_come_from_one_address() -> None:
    badges, with_badges = badges_module.badges, badges_module.with_badges
    assert badges_module.REPOSITORY == ""
    assert badges("", "notebooks/colab_t4.ipynb") == ""
    text = badges("https://github.com/ana/lhama", "notebooks/colab_t4.ipynb")
    assert "https://colab.research.google.com/github/ana/lhama/blob/main/notebooks/colab_t4.ipynb" in text
    with pytest.raises(ValueError, match="REPOSITORY=https://example.org/x: must be https://github.com/owner/name"):
        badges("https://example.org/x", "a.ipynb")
    first = read("colab_t4").cells[0].source
    assert with_badges(with_badges(first, text), "") == first


# Hugging Face Jobs.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", tokens={"hf_test": "ana"}) as running:
        yield running


def test_the_line_of_the_job_is_complete_up_to_its_submission(server: HubServer, tmp_path: Path) -> None:
    script = REPOSITORY / "recipes" / "hf_job.py"
    text = script.read_text(encoding="utf-8")
    header = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.split("# ///")[1].splitlines()[1:])
    declared = tomllib.loads(header)
    assert declared["dependencies"] == ["teenytinyllama[sft]"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert declared["requires-python"] == project["requires-python"]
    (line,) = re.findall(r"^  (hf jobs uv run .*?)\n\n", text, re.M | re.S)
    words = line.replace("\\\n", " ").split()
    words.insert(4, "--dry-run")
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "home"), "NO_COLOR": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # fmt: skip
    code = "import sys; from huggingface_hub.cli.hf import main; sys.argv[0] = 'hf'; main()"
    done = subprocess.run([sys.executable, "-c", code, *words[1:]], cwd=REPOSITORY, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for shown in ("t4-small", "hf://buckets/ana/meus-modelos:/modelos", "HF_TOKEN=***", "(dry run) Job not submitted."):
        assert shown in done.stdout, done.stdout
    assert "hf_test" not in done.stdout
    assert not server.writes()


def test_the_verb_of_the_job_knows_the_keys_of_its_line() -> None:
    from teenytinyllama.arguments import read_values
    from teenytinyllama.training.config import PretrainConfig

    text = (REPOSITORY / "recipes" / "hf_job.py").read_text(encoding="utf-8")
    (line,) = re.findall(r"recipes/hf_job.py \\\n(.*?)\n\n", text, re.S)
    words = line.replace("\\\n", " ").split()
    assert words[0] == "pretrain"
    values = read_values(PretrainConfig, [word.replace("recipes/", f"{REPOSITORY}/recipes/") for word in words[1:]])
    assert (values["output_dir"], values["max_hours"]) == ("/modelos/base", 5.5)


# Workflows.


def workflow(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def test_a_release_is_published_by_a_trusted_publisher_without_a_token() -> None:
    text = (REPOSITORY / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    jobs = workflow("release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in jobs["build"]  # only the job that runs no code of ours may ask for an identity
    assert all("run" not in step for step in jobs["publish"]["steps"])
    assert "secrets." not in text
    assert "password" not in text


def test_macos_has_a_job_whose_tests_exist() -> None:
    steps = workflow("tests.yml")["jobs"]["macos"]["steps"]
    named = re.findall(r"tests/\w+\.py", " ".join(str(step.get("run")) for step in steps))
    assert "tests/test_devices.py" in named
    assert all((REPOSITORY / name).is_file() for name in named)
