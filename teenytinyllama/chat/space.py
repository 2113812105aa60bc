"""Space: `ttl app MODEL` serves the page, or writes it to a folder that can be uploaded as a Hugging Face Space."""

import os
import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, ensure_packages
from ..data.input_files import RECORD_SUFFIXES, SAMPLE, SourceFile, resolve_files
from ..model_files import PUBLISHED_MODELS
from ..models import from_pretrained, place_for_answers
from ..stage_folder import __version__
from .page import AppConfig, build_page, check_address, is_loopback, launch_arguments
from .talk import SearchIndex, Speaker, read_pairs

DATA_FOLDER = "instructions"
_PYTHON = "3.12"  # of the Space; the newest that torch, Gradio and we are all tested with
# Keys of AppConfig that app.py gives itself, or that mean nothing in a Space.
_NOT_COPIED = {"host", "port", "space_dir", "instructions"}

_APP = '''"""A page to talk with {model}; made by `ttl app --space_dir` of teenytinyllama {version}."""

from teenytinyllama.chat.page import AppConfig
from teenytinyllama.chat.space import run_app

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
        read_pairs(config.instructions)  # bad data are refused here rather than by the Space
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
        if known.name not in _NOT_COPIED and value != known.default:
            values[known.name] = value
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def run_app(model: str, config: AppConfig) -> int:
    """Serve the page until it is interrupted, or write a Space; return 0.

    Args:
        model: a folder (a run, a checkpoint), a Hub repository, or a short name.
        config: see `AppConfig`.

    Raises:
        InputError: no such model, bad instruction data, or an address that cannot be served on.
        MissingPackageError: the extra `app` is not installed.
    """
    ensure_packages("app", "gradio", "sklearn")
    if config.space_dir:
        folder = write_space(model, config)
        print(f"{folder} is a Space. Look at it, then: hf upload --repo-type space owner/name {folder}")
        return 0
    check_address(config.host, config.port)
    index = _read_index(config.instructions)
    print(f"loading {model} …", flush=True)
    loaded, tokenizer = from_pretrained(model, config.revision)
    placed, note = place_for_answers(loaded, config.use_cpu)
    if note:
        print(note)
    speaker = Speaker(placed, tokenizer)
    ensure(
        speaker.is_chat or not config.system,
        f"system={config.system}: {model} has no chat template, so it cannot be told anything. Leave system out.",
    )
    if not is_loopback(config.host):
        print(f"warning: host={config.host}: anyone in the network can use this page.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    page: Any = build_page(speaker, _title(model), config, index)
    print(f"http://{config.host}:{config.port}  (Ctrl-C ends)", flush=True)
    arguments = launch_arguments(config.host if is_loopback(config.host) else None)
    page.launch(server_name=config.host, server_port=config.port, **arguments)
    return 0


def _title(model: str) -> str:
    """Return a model's name for the page: of a folder its last part, since where it lies is nobody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else PUBLISHED_MODELS.get(model, model)


def _read_index(instructions: list[str]) -> SearchIndex | None:
    if not instructions:
        return None
    pairs, left_out = read_pairs(instructions)
    for reason, number in left_out.items():
        print(f"instructions: {number:,} rows left out: {reason}")
    print(f"instructions: {len(pairs):,} answers to search")
    return SearchIndex(pairs)
