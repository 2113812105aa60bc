"""Fenced blocks of documents, and how their commands are run in few steps or parsed by their verbs."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from teenytinyllama import cli
from teenytinyllama.arguments import build
from teenytinyllama.checks import ensure
from teenytinyllama.doctor.preflight import read_command

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = {"ttl demo", "ttl pretrain", "accelerate launch"}  # take --max_tokens: a few steps do
# The key of the folder that a training makes of `inputs` before its config is complete.
_PREPARED = {"pretrain": "packed", "sft": "conversations", "dpo": "preferences"}
# The verb behind each recipe and each Slurm script; the rest is called as its verb.
_VERBS = {"train_tokenizer": "tokenizer"}


def blocks(name: str | Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (REPOSITORY / name).read_text(encoding="utf-8"), re.M | re.S)


def lines_of(name: str | Path, language: str) -> list[str]:
    return [line for block in blocks(name, language) for line in block.replace("\\\n", "").splitlines()]


def commands(name: str | Path) -> list[str]:
    return lines_of(name, "bash")


def shell_environment(folder: Path) -> dict[str, str]:
    """An environment with `ttl`, `python` and `accelerate` of this interpreter first on the path, from `folder`."""
    for name, module in (("ttl", "teenytinyllama"), ("accelerate", "accelerate.commands.accelerate_cli")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def shortened(command: str) -> str:
    """A training command with few steps, where it does not say how many."""
    if command.startswith(("ttl sft", "ttl dpo")) and "--max_steps" not in command:
        command += " --max_steps 2"
        if command.startswith("ttl sft"):  # of a base model that a few steps have taught nothing
            command += " --check_first_loss false"
    if any(command.startswith(step) for step in STEPS) and "--max_tokens" not in command:
        command += " --max_tokens 16384"
    return command


def check_install(command: str) -> None:
    """Fail unless a `pip install` of this package names extras that exist; test_package installs them."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.fullmatch(r"pip install '?teenytinyllama(?:\[(\w+)\])?'?", command)
    assert wanted is not None, command
    assert wanted[1] in (None, *extras), command


def run_commands(listed: list[str], where: Path, shell: dict[str, str]) -> Path:
    """Run commands in order as a reader would, trainings with few steps, and return the folder in which they end."""
    for command in listed:
        if command.startswith("pip install"):
            check_install(command)
        elif command.startswith("cd "):
            where = where / command[3:]
        else:
            run_one(shortened(command), where, shell)
    return where


def run_one(command: str, where: Path, shell: dict[str, str]) -> str:
    done = subprocess.run(command, shell=True, cwd=where, env=shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def verb_line(line: str) -> list[str] | None:
    """The arguments of `ttl` in a line of a document, also behind accelerate, srun and sbatch; None: another program.

    Raises:
        InputError: a file of ranks, a recipe or a script that does not exist.
    """
    words = shlex.split(line, comments=True)
    if not words or words[0] not in ("ttl", "accelerate", "srun", "sbatch"):
        return None
    if words[0] == "ttl":
        return words[1:]
    if words[0] == "srun":
        return words[words.index("ttl") + 1 :] if "ttl" in words else None
    for word in (word for word in words if word.startswith("recipes/")):
        ensure((REPOSITORY / word).is_file(), f"{word}: no such file.")
    place = next((place for place, word in enumerate(words) if word.endswith((".py", ".sbatch"))), None)
    ensure(place is not None, f"{line}: names no recipe and no script.")
    script, rest = Path(words[place or 0]), words[(place or 0) + 1 :]
    verb = _VERBS.get(script.stem, script.stem)
    if script.suffix == ".py":
        return [verb, *rest]
    if verb == "evaluate":  # what the Slurm scripts do with their words
        return [verb, *rest]
    ranks = ["--accelerate", rest[1]] if len(rest) > 1 else []
    return [verb, "--config", rest[0], *ranks, *rest[2:]]


def parse_line(argv: list[str], set_verb: Callable[[str, cli.Verb], AbstractContextManager[Any]]) -> None:
    """Parse what stands behind `ttl` as the command does, and start nothing.

    Args:
        argv: a verb and its arguments.
        set_verb: puts a verb into the table while a block runs.

    Raises:
        InputError: an unknown verb or key, a wrong value, or a config that does not exist.
    """
    if not argv or argv[0].startswith("-"):
        return
    ensure(argv[0] in cli.VERBS, f"{argv[0]}: unknown verb.")
    name, rest = argv[0], argv[1:]
    verb = cli.VERBS[name]
    if verb.reads:
        read_command(rest)
        return

    def keep(config: Any, *_: Any) -> None:
        if isinstance(config, dict):
            if config.get("inputs") and name in _PREPARED:
                config.setdefault(_PREPARED[name], "FOLDER")
            if name != "demo":  # makes its config of these values itself
                build(cli._config_class(verb, []), config)

    with set_verb(name, replace(verb, run=keep)):
        cli._call(name, rest, is_command=False)
