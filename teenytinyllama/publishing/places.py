"""Folders of this machine are nobody's business: where a file lay is cut from what is published, its name stays."""

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ..checks import InputError

# An absolute path of two parts or more in a command, in quotes where it holds a space; no part of a URL, a relative
# path or a repository's name.
_QUOTED = re.compile(r"'(?:/[^'\n]*/|[A-Za-z]:\\[^'\n]*\\)([^'/\\\n]+)'")
_PLAIN = re.compile(r"(?<![\w.~:/\\-])(?:/(?:[^\s'\";/]+/)+|[A-Za-z]:\\(?:[^\s'\";\\]+\\)+)(?=[^\s'\";/\\])")

_TEXTS = {"sample_prompts"}  # keys whose values are texts, whatever they look like


def without_place(text: str) -> str:
    """Return an absolute path cut to its last part; every other text as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() and len(path.parts) > 2 and "\n" not in text:
            return path.name
    return text


def command_without_places(command: str) -> str:
    """Return a command, or several with `;` between them, with its absolute paths cut to their last parts."""
    return _PLAIN.sub("", _QUOTED.sub(r"'\1'", command))


def record_without_places(path: Path) -> bytes:
    """Return the content of a JSON or YAML record with its absolute paths cut to their last parts.

    Raises:
        InputError: it is damaged.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is damaged ({' '.join(str(error).split())}).") from error
    cut = without_places(content)
    if cut == content:
        return text.encode()
    if path.suffix == ".json":
        return (json.dumps(cut, ensure_ascii=False, indent=1) + "\n").encode()
    return yaml.safe_dump(cut, sort_keys=False, allow_unicode=True, width=120).encode()


def without_places(value: Any, key: str = "") -> Any:
    """Return what JSON holds, its absolute paths cut to their last parts; `key` is where it stands."""
    if isinstance(value, dict):
        return {name: item if name in _TEXTS else without_places(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return command_without_places(value) if key == "command" else without_place(value)
