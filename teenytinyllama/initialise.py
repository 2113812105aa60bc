"""`ttl init`: copy the recipes out of the package, each with the version it comes from."""

import shutil
from pathlib import Path

from . import __version__
from .checks import ensure

_COMMENTED = {".py", ".yaml", ".sh"}  # JSON knows no comments


def copy_recipes(source: Path, folder: Path) -> Path:
    """Copy all recipes, configs, accelerate and DeepSpeed files to `folder`/recipes and return that folder.

    Raises:
        InputError: the folder holds recipes already.
    """
    target = folder / "recipes"
    ensure(
        not target.exists(),
        f"DIR={folder}: {target} exists already and may hold your changes. Choose another folder, or move it away.",
    )
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(target.rglob("*")):
        if path.suffix in _COMMENTED:
            _add_header(path)
    print(f"recipes of teenytinyllama {__version__} in {target}; next: cd {folder} && ttl pretrain --help")
    return target


def _add_header(path: Path) -> None:
    header = f"# from teenytinyllama {__version__}\n"
    text = path.read_text(encoding="utf-8")
    if text.startswith("#!"):  # the shebang stays the first line
        first, _, rest = text.partition("\n")
        path.write_text(f"{first}\n{header}{rest}", encoding="utf-8")
    else:
        path.write_text(header + text, encoding="utf-8")
