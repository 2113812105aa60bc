"""The house: how many rooms it has, what they are called, which may import which, and what importing costs."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "teenytinyllama"
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# The corpus stage (`cleaning`, `corpus`) has 23 of these files.
MOST_FILES, MOST_AT_THE_TOP, MOST_IN_A_FOLDER, MOST_LINES = 173, 16, 15, 450

# Parts that know nothing of others, wherever the import stands: (importing, imported).
FORBIDDEN = [
    ("planning", "training"),  # arithmetic: a plan needs no torch
    ("evaluation", "training"),
    ("evaluation", "tuning"),
    ("training", "publishing"),
    ("tuning", "publishing"),
    ("data", "training"),
    ("tokenizer", "training"),
    ("energy", "training"),
    ("chat", "training"),
]


def imported_files(name: str) -> set[str]:
    """The files of the package that a file imports anywhere in it, also inside functions."""
    path = FILES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            submodules = {f"{module}.{alias.name}" for alias in node.names} & set(FILES)
            is_module_too = len(submodules) < len(node.names) and module in FILES
            found |= submodules | ({module} if is_module_too else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(FILES)
    return found - {name}


IMPORTS = {name: imported_files(name) for name in FILES}


def test_no_file_imports_itself_in_a_circle() -> None:
    left = {name: set(targets) for name, targets in IMPORTS.items()}
    while free := {name for name, targets in left.items() if not targets & set(left)}:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert not left, {name: sorted(targets & set(left)) for name, targets in left.items()}


@pytest.mark.parametrize(("part", "other"), FORBIDDEN)
def test_imports_point_one_way(part: str, other: str) -> None:
    importing = [name for name in FILES if name.startswith(f"teenytinyllama.{part}.")]
    assert importing
    wrong = {name: bad for name in importing
             if (bad := {target for target in IMPORTS[name] if target.startswith(f"teenytinyllama.{other}")})}  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "dpo"])
def test_a_rank_imports_nothing_that_publishes(recipe: str) -> None:
    text = (PACKAGE.parent / "recipes" / f"{recipe}.py").read_text(encoding="utf-8")
    left = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module}
    left &= set(FILES)
    seen: set[str] = set()
    while left:
        seen |= left
        left = set().union(*(IMPORTS[name] for name in left)) - seen
    assert f"teenytinyllama.{'training.pretrain' if recipe == 'pretrain' else 'tuning.tune'}" in seen
    assert not [name for name in seen if name.startswith("teenytinyllama.publishing")]


def test_the_house_stays_small() -> None:
    assert len(FILES) <= MOST_FILES
    folders = Counter(path.parent for path in FILES.values())
    assert folders.pop(PACKAGE) <= MOST_AT_THE_TOP
    assert {str(folder): count for folder, count in folders.items() if count > MOST_IN_A_FOLDER} == {}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_names_say_one_thing() -> None:
    names = Counter(path.name for path in FILES.values() if path.name not in ("__init__.py", "config.py"))
    assert [name for name, count in names.items() if count > 1] == []
    classes = Counter(node.name for path in FILES.values() for node in ast.walk(ast.parse(path.read_text("utf-8")))
                      if isinstance(node, ast.ClassDef))  # fmt: skip
    assert [name for name, count in classes.items() if count > 1] == []


@pytest.mark.parametrize(
    "code",
    ["import teenytinyllama", "import teenytinyllama.cli", "from teenytinyllama import PRESETS, preset_config",
     "from teenytinyllama import train_tokenizer, from_pretrained"],
)  # fmt: skip
def test_importing_the_package_loads_nothing_heavy(code: str) -> None:
    check = "import sys; heavy = {'torch', 'transformers', 'deepspeed', 'pyarrow', 'datasets', 'gradio', 'sklearn'} & set(sys.modules); "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}assert not heavy, heavy"], check=False, cwd=PACKAGE.parent
    )
    assert done.returncode == 0


def test_the_training_path_needs_no_pyarrow_datasets_or_trl() -> None:
    code = (
        "import sys\n"
        "for name in ('pyarrow', 'datasets', 'trl'): sys.modules[name] = None\n"  # importing them raises
        "import teenytinyllama.training.pretrain, teenytinyllama.data.pack, teenytinyllama.publishing.card\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors() -> None:
    import teenytinyllama

    assert "from_pretrained" in dir(teenytinyllama)
    with pytest.raises(AttributeError, match="no attribute 'tokenise'"):
        _ = teenytinyllama.tokenise
