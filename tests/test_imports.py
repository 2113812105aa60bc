"""Which module may import which, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "teenytinyllama"

# A part may import itself and the parts named here: imports point one way.
BASE = {"checks", "manifest", "__init__"}
ENERGY = {"grid", "emissions", "meter", "ledger", "recorder"}
CORE = (
    BASE
    | ENERGY
    | {
        "attention",
        "collectives",
        "checkpoints",
        "arguments",
        "presets",
        "gpus",
        "hub_client",
        "locks",
        "stopping",
        "tokenizer",
        "model_files",
        "published",
        "adapters",
    }
)
ALLOWED = {
    "checks": set(),
    "attention": set(),
    "collectives": set(),
    "locks": {"checks"},
    "checkpoints": BASE | {"locks"},
    "manifest": {"checks", "__init__"},
    "hub_client": {"checks"},
    "stopping": {"checks"},
    "supervision": {"checks"},
    "initialise": {"checks", "__init__"},
    "arguments": BASE,
    "presets": BASE,
    "gpus": {"checks"},
    "grid": {"checks"},
    "gpu_counter": set(),
    "tracker": {"checks", "grid"},
    "emissions": {"checks"},
    "meter": {"checks", "grid", "gpu_counter", "tracker", "emissions"},
    "ledger": BASE | {"emissions", "meter"},
    "recorder": {"checks", "grid", "emissions", "locks", "meter", "ledger", "__init__"},
    "tokenizer": BASE,
    "model_files": BASE | {"hub_client"},
    "adapters": CORE,
    "published": CORE,
    "chat": CORE,
    "launcher": BASE | {"supervision"},
    "data": CORE | {"chat"},
    "evaluation": CORE | {"data"},
    "training": CORE | {"data", "evaluation", "supervision"},
    "planning": CORE | {"training"},
    "tuning": CORE | {"chat", "data", "evaluation", "training"},
    "classification": CORE | {"data", "evaluation", "training"},
    "publishing": CORE | {"data", "evaluation", "supervision", "training"},
    "demo": CORE | {"data", "evaluation", "training", "publishing"},
    "app": CORE | {"chat", "data"},
    "starting": BASE | {"arguments", "launcher", "locks", "publishing", "recorder", "training"},
    "cli": CORE
    | {"starting", "app", "chat", "classification", "data", "demo", "evaluation", "initialise", "launcher", "planning", "publishing",
       "training", "tuning"},
    "__main__": {"cli"},
    "__init__": {"presets", "published", "tokenizer"},
}  # fmt: skip


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports anywhere in it."""
    package = ["teenytinyllama", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [alias.name for alias in node.names] if module == ["teenytinyllama"] else []
            if module[:1] == ["teenytinyllama"]:
                found |= set(module[1:2]) or {name if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()
                                              else "__init__" for name in names}  # fmt: skip
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("teenytinyllama.")}
    return found


def test_imports_point_one_way() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        wrong = imported_parts(path) - ALLOWED[part] - {part}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


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
        "import teenytinyllama.training.pretrain, teenytinyllama.data.packing, teenytinyllama.publishing.cards\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors() -> None:
    import teenytinyllama

    assert "from_pretrained" in dir(teenytinyllama)
    with pytest.raises(AttributeError, match="no attribute 'tokenise'"):
        _ = teenytinyllama.tokenise
