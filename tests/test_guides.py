"""The guides: each bash block is run in order, each line of a text block for another machine is parsed by its verb."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from document_blocks import (
    REPOSITORY,
    blocks,
    commands,
    lines_of,
    parse_line,
    run_commands,
    run_one,
    shell_environment,
    shortened,
    verb_line,
)

from teenytinyllama import cli
from teenytinyllama.checks import InputError

GUIDES = REPOSITORY / "docs" / "guides"
PAGES = sorted(path.stem for path in (GUIDES / "en").glob("*.md"))
LANGUAGES = ("en", "pt")
FIRST, TUNING = "first-model", "instruction-tuning"  # make what the other pages use


def page(language: str, name: str) -> Path:
    return GUIDES / language / f"{name}.md"


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_commands_and_code(name: str) -> None:
    english, portuguese = page("en", name), page("pt", name)
    assert commands(english) == commands(portuguese)
    for kind in ("python", "json", "yaml"):
        assert len(blocks(english, kind)) == len(blocks(portuguese, kind))
    assert blocks(english, "python") == blocks(portuguese, "python")
    theirs = [[line for line in lines_of(file, "text") if verb_line(line)] for file in (english, portuguese)]
    assert theirs[0] == theirs[1]
    assert len(lines_of(english, "mermaid")) == len(lines_of(portuguese, "mermaid"))
    levels = [
        [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        for file in (english, portuguese)
    ]
    assert levels[0] == levels[1], "both have the same headings"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: as `ttl init` makes it, with the reader's files and what `ttl plan --write run.yaml` writes."""
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    shutil.copyfile(tmp_path / "recipes" / "configs" / "460m" / "pretrain.yaml", tmp_path / "run.yaml")
    for folder, row in (("corpus", '{"text": "a"}'), ("instruct", '{"instruction": "a", "output": "b"}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(f"{row}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = verb_line(line)
    assert argv is not None

    class Table:
        def __init__(self, name: str, verb: Any) -> None:
            self.name, self.verb = name, verb

        def __enter__(self) -> None:
            self.patch = monkeypatch.context()
            self.patch.__enter__().setitem(cli.VERBS, self.name, self.verb)

        def __exit__(self, *error: Any) -> None:
            self.patch.__exit__(*error)

    parse_line(argv, Table)


def refusal(line: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the verb of a line says against it."""
    try:
        parse(line, monkeypatch)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", PAGES)
def test_lines_for_other_machines_are_parsed_by_their_verbs(
    name: str, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("text", "bash"):
        for line in lines_of(page("en", name), kind):
            line = line.rpartition(" | ")[2]  # what an echo is for
            said = refusal(line, monkeypatch) if verb_line(line) else None
            # A folder that an earlier command makes is not there, or run.yaml is; a recipe is there.
            missing = said and re.search("no such|does not exist|already exists", said) and "recipes/" not in said
            assert said is None or missing, f"{name}: {line}: {said}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ttl pretrian --config run.yaml", "unknown verb"),
        ("ttl pretrain --config run.yaml --max_token 3", "max_token: unknown key"),
        ("ttl pretrain --config run.yaml --learning_rate fast", "learning_rate='fast'"),
        ("ttl pretrain --config recipes/none.yaml", "no such file"),
        ("ttl export model --type q9_0", "type=q9_0"),
        ("ttl doctor run.yaml --learning_rat 3", "learning_rat: unknown key"),
        ("sbatch recipes/slurm/none.sbatch run.yaml", "none.sbatch: no such file"),
        ("sbatch --nodes 2 recipes/slurm/pretrain.sbatch recipes/none.yaml zero1", "no such file"),
        ("sbatch --nodes 2 --wrap true", "names no recipe"),
        ("srun ttl pretrain --config run.yaml --nun_machines 2", "nun_machines: unknown key"),
        ("accelerate launch --config_file recipes/accelerate/none.yaml recipes/pretrain.py", "no such file"),
        ("accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/sft.py --lora 3", "lora: unknown key"),
    ],
)
def test_a_wrong_line_is_found(line: str, message: str, recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=message):
        parse(line, monkeypatch)


def test_lines_of_other_programs_are_left_alone() -> None:
    assert verb_line("ollama run my-model") is None
    assert verb_line("") is None
    assert verb_line("srun --ntasks-per-node=1 ttl card RUN  # one task") == ["card", "RUN"]
    assert shortened("ttl dpo --config a.yaml") == "ttl dpo --config a.yaml --max_steps 2"
    assert shortened("ttl pretrain --max_tokens 5") == "ttl pretrain --max_tokens 5"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return shell_environment(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def made(shell: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page of the first model ends, with the chat model of the tuning page."""
    where = run_commands(commands(page("en", FIRST)), tmp_path_factory.mktemp("first"), shell)
    run_python(page("en", FIRST), where, shell)
    tuning = next(line for line in commands(page("en", TUNING)) if line.startswith("ttl sft"))
    run_one(shortened(tuning), where, shell)
    return where


def run_python(file: Path, where: Path, shell: dict[str, str]) -> None:
    for block in blocks(file, "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=where, env=shell, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{file}\n{block}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in PAGES if name != FIRST and commands(page("en", name))])
def test_a_page_word_for_word(name: str, made: Path, shell: dict[str, str], tmp_path: Path) -> None:
    """Both languages have the same commands, so those of one are run."""
    where = tmp_path / "my-model"
    shutil.copytree(made, where)
    run_commands(commands(page("en", name)), where, shell)
    run_python(page("en", name), where, shell)
