"""The READMEs: every command and every Python block is executed, and both languages give the same ones."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from document_blocks import REPOSITORY, blocks, check_install, commands, run_one, shell_environment, shortened

READMES = ("README.md", "README.pt-BR.md")


def test_both_readmes_have_the_same_commands_and_code() -> None:
    assert commands(READMES[0]) == commands(READMES[1])
    assert blocks(READMES[0], "python") == blocks(READMES[1], "python")
    assert len(commands(READMES[0])) > 10


def test_readmes_fit_a_front_page_and_have_the_same_pictures_tables_and_links() -> None:
    texts = [(REPOSITORY / name).read_text(encoding="utf-8") for name in READMES]
    assert all(len(text.splitlines()) <= 150 for text in texts)
    for pattern in (r"^#+ ", r"^!\[[^]]*\]\((.+?)\)", r"^\|(?:-+\|)+$", r"^(?:\|).*\|$"):
        found = [re.findall(pattern, text, re.MULTILINE) for text in texts]
        assert len(found[0]) == len(found[1]), pattern
    links = [
        sorted(re.sub(r"guides/(?:en|pt)/|#.*", "", link) for link in re.findall(r"\]\(((?:docs|[A-Z]+\.).*?)\)", text))
        for text in texts
    ]
    assert [link for link in links[0] if "README" not in link] == [link for link in links[1] if "README" not in link]


def test_presets_in_the_readmes_are_the_presets() -> None:
    from teenytinyllama import PRESETS

    for name in READMES:
        text = (REPOSITORY / name).read_text(encoding="utf-8").replace(".", ",")
        for preset, shape in PRESETS.items():
            row = next(line for line in text.splitlines() if line.startswith(f"| `{preset}` |"))
            assert f"| {shape.num_hidden_layers} x {shape.hidden_size} |" in row
            assert f"| {shape.num_attention_heads} ({shape.num_key_value_heads}) |" in row
            assert f"| {shape.num_parameters:,} |" in row
            assert f"| {shape.max_position_embeddings:,} |" in row


def test_files_that_documents_name_exist_and_nothing_local_is_named() -> None:
    tracked = [path for path in REPOSITORY.rglob("*.md") if not {".venv", "outputs", "build"} & set(path.parts)]
    assert len(tracked) >= 5
    for path in tracked:
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        assert not re.search(r"(?<![\w.])/(?:root|home|tmp|work)/\w", text), path


def names_of(path: Path) -> set[str]:
    """The functions, classes and constants at the top of a Python file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def test_how_do_i_names_what_exists() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \|$", text.partition("## How do I")[2].partition("\n\n`tests/")[0], re.MULTILINE
    )
    asked = [row for row in rows if row[0] != "task"]
    assert len(asked) >= 12
    for _, place in asked:
        path = None
        for word in re.findall(r"`([^`]+)`", place):
            if "/" in word or word.endswith((".py", ".yaml")):
                folder = REPOSITORY if word.startswith(("recipes/", "tests/")) else REPOSITORY / "teenytinyllama"
                path = (folder if (folder / word).exists() else folder / "publishing" / "texts") / word
                assert path.exists(), word
            else:
                assert path is not None
                assert path.suffix == ".py", word
                assert word in names_of(path), f"{path.name} has no {word}"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return shell_environment(tmp_path_factory.mktemp("bin"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_readme_word_for_word(shell: dict[str, str], tmp_path: Path) -> None:
    where = tmp_path
    for command in commands(READMES[0]):
        if command.startswith("make "):  # CI runs them whole; here: what they would do
            done = subprocess.run(
                ["make", "-n", command.split()[1]], cwd=REPOSITORY, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            continue
        if command.startswith("pip install"):
            check_install(command)
            continue
        if command.startswith("cd "):
            where = where / command[3:]
            continue
        run_one(shortened(command), where, shell)
    for block in blocks(READMES[0], "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=where, env=shell, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"


def test_reproduce_names_the_sizes(shell: dict[str, str], tmp_path: Path) -> None:
    script = REPOSITORY / "recipes" / "reproduce.sh"
    done = subprocess.run([script, "tinny"], env=shell, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "tinny: no such size. Use one of 160m 1b1 460m tiny" in done.stderr
