"""A folder that is a Hugging Face Space: the page, its requirements, the card and the instruction data."""

import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..checks import InputError, ensure
from ..data.input_files import SAMPLE, SourceFile, resolve_files
from ..data.readers import RECORD_SUFFIXES
from ..published import PUBLISHED_MODELS
from .config import AppConfig
from .search import read_pairs

DATA_FOLDER = "instructions"
_PYTHON = "3.12"  # of the Space; the newest that torch, Gradio and we are all tested with
_ELSEWHERE = {"host", "port", "space_dir", "instructions"}  # said by app.py itself, or of no use in a Space

_APP = '''"""A page to talk with {model}; made by `ttl app --space_dir` of teenytinyllama {version}."""

from teenytinyllama.app.config import AppConfig
from teenytinyllama.app.serve import run_app

raise SystemExit(run_app({model!r}, AppConfig({arguments})))
'''
_REQUIREMENTS = """\
# A Space without a GPU needs the CPU build of torch only. Delete this line for a Space with a GPU.
--extra-index-url https://download.pytorch.org/whl/cpu
torch
teenytinyllama[app]=={version}
"""
_CARD = """\
---
title: {title}
emoji: 🦙
colorFrom: green
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
license: apache-2.0
language: pt
models:
  - {model}
---

# {title}

Uma página para conversar com [{model}](https://huggingface.co/{model}), feita com teenytinyllama {version}.
{data}
A licença acima é a desta página; o modelo e os dados têm as suas.
"""
_DATA = """
A busca compara as respostas com os dados de instrução em `{folder}`.
"""


def write_space(model: str, config: AppConfig) -> Path:
    """Write the folder `config.space_dir` and return it; nothing that exists is overwritten.

    Args:
        model: a Hub repository or a short name; the Space loads it from the Hub.
        config: its sampling, system text, revision and instruction data become the Space's.

    Raises:
        InputError: the model is a folder or no repository id, the folder is not empty, or the instruction data cannot
            be read.
    """
    repository = _repository(model)
    folder = Path(config.space_dir).expanduser()
    ensure(not folder.exists() or folder.is_dir(), f"space_dir={folder}: is a file. Choose a new or an empty folder.")
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    ensure(not others, f"space_dir={folder}: is not empty ({', '.join(others[:3])}). Choose a new or an empty folder.")
    if config.instructions:
        read_pairs(config.instructions)  # refused here rather than by the Space
    files = _files_to_copy(config.instructions)
    pinned = [text for text in config.instructions if text == SAMPLE or text.startswith("hf://")]
    instructions = [*(f"{DATA_FOLDER}/{name}" for name in files), *pinned]

    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        (folder / DATA_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(file.path, folder / DATA_FOLDER / name)
    title = f"Converse com {repository.split('/')[1]}"[:60]
    data = _DATA.format(folder=DATA_FOLDER) if files else ""
    texts = {
        "app.py": _APP.format(model=repository, version=__version__, arguments=_arguments(config, instructions)),
        "requirements.txt": _REQUIREMENTS.format(version=__version__),
        "README.md": _CARD.format(
            title=title, gradio=version("gradio"), python=_PYTHON, model=repository, version=__version__, data=data
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _repository(model: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    ensure(
        not Path(model).expanduser().exists(),
        f"MODEL={model}: is a folder on this machine, and a Space loads its model from the Hub. Publish the model "
        "first (`hf upload owner/name FOLDER`), then give owner/name.",
    )
    repository = PUBLISHED_MODELS.get(model, model)
    message = f"MODEL={model}: is no Hub repository, which a Space needs. Write owner/name."
    ensure(repository.count("/") == 1, message)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(message) from error
    return repository


def _files_to_copy(instructions: list[str]) -> dict[str, SourceFile]:
    """Return the local files by their names in the Space."""
    local = [text for text in instructions if not text.startswith("hf://")]
    files: dict[str, SourceFile] = {}
    for file in resolve_files("instructions", local, RECORD_SUFFIXES):
        name = file.path.name
        ensure(
            name not in files or files[name].path == file.path,
            f"instructions={file.path}: another file is called {name} too, and a Space holds them in one folder. "
            "Rename one.",
        )
        files[name] = file
    return files


def _arguments(config: AppConfig, instructions: list[str]) -> str:
    """Return the arguments of the Space's AppConfig: what differs from the defaults."""
    values: dict[str, Any] = {"host": "0.0.0.0"}  # a Space is reached through its host's proxy
    if instructions:
        values["instructions"] = instructions
    for known in fields(AppConfig):
        value = getattr(config, known.name)
        if known.name not in _ELSEWHERE and value != known.default:
            values[known.name] = value
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
