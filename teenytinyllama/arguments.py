"""Configs: a dataclass filled from a flat YAML file and `--key value` overrides, strictly.

An unknown key, a wrong type, a key given twice and a missing required key are refused before any work starts.
"""

import dataclasses
import enum
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from .checks import InputError, check_bounds, ensure, ensure_file, near_name, read_utf8
from .help_text import describe_keys, describe_type

Config = TypeVar("Config")

# Keys that users of older libraries still write, and what they are called today.
RENAMED_KEYS = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps (a float below 1 is a ratio)",
    "no_cuda": "use_cpu",
    "torch_dtype": "bf16, fp16 or neither",
    "block_size": "context (of `ttl pack`)",
    "max_seq_length": "context (of `ttl pack`)",
    "tokenizer_name_or_path": "tokenizer",
    "country": "country_iso_code",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}

_LARGEST_FLOAT = sys.float_info.max
_MOST_YAML_VALUES = 100_000  # of a config, however often its aliases repeat them

# Keys whose value is never shown.
SECRET_KEYS = {"token", "hub_token"}


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans, and no key twice.

    YAML 1.1 reads `6e-4` as text and `no` as false, which surprises everybody who writes a learning rate or a
    country.
    """


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):  # such as `{{ name }}`, a template that nobody filled in
            raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key_node.start_mark)
        ensure(
            key not in seen,
            f"{key}: given twice in the YAML (line {key_node.start_mark.line + 1}). Keep one of the two lines.",
        )
        seen.add(key)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep))


def _without_yaml_1_1(resolvers: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    dropped = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "bool", "float", "timestamp")}
    return {first: [(tag, regexp) for tag, regexp in rules if tag not in dropped] for first, rules in resolvers.items()}


_StrictLoader.yaml_implicit_resolvers = _without_yaml_1_1(yaml.SafeLoader.yaml_implicit_resolvers)
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
# Decimal alone: 1.1 reads 1:30 as 90 and 0100 as 64.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+)$"),
    list("-+.0123456789"),
)
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def load_yaml(text: str, name: str) -> Any:
    """Return what a YAML text holds, read strictly; `name` says where it is from.

    Raises:
        InputError: not YAML, a key given twice, a value that is not of the type its tag names, or content that is
            nested or repeated (by anchors) without end.
    """
    try:
        content = yaml.load(text, Loader=_StrictLoader)
        size = _size(content, {})
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{name}: not valid YAML: nested too deeply. A config is flat: key: value lines.") from error
    # What PyYAML raises at a tag whose value does not fit, such as `!!int abc`, `!!bool x`, `!!timestamp x`.
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name}: not valid YAML: a value does not fit its tag, or is a number beyond all bounds ({error}). Write "
            "plain key: value lines, without !! tags."
        ) from error
    ensure(
        size <= _MOST_YAML_VALUES,
        f"{name}: not valid YAML for a config: its anchors repeat one another to more than {_MOST_YAML_VALUES:,} "
        "values. Write the values themselves.",
    )
    return content


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file that a stage wrote, such as the `config.yaml` of a run.

    Raises:
        InputError: it is damaged, see `load_yaml`.
    """
    content = load_yaml(read_utf8(path), str(path))
    ensure(isinstance(content, dict), f"{path}: must hold `key: value` lines. Copy it again.")
    return dict(content)


def _size(value: Any, known: dict[int, int]) -> int:
    """Return how many values a value is made of, those that aliases repeat counted each time."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = _MOST_YAML_VALUES + 1  # until it is known: a value that holds itself has no end
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


_REFUSED = object()


def _convert(value: Any, hint: Any) -> Any:
    """Return `value` as the type hint wants it, or `_REFUSED`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        parts = sorted(typing.get_args(hint), key=lambda part: part is str)  # text takes anything quoted: try it last
        return next((out for part in parts if (out := _convert(value, part)) is not _REFUSED), _REFUSED)
    if origin is Literal:
        known = typing.get_args(hint)  # 0 is not false, and 1 is not true
        return value if any(value == one and type(value) is type(one) for one in known) else _REFUSED
    if hint in (None, type(None)):
        return None if value is None else _REFUSED
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value if isinstance(value, str) and value in {member.value for member in hint} else _REFUSED
    if origin is list or hint is list:
        if not isinstance(value, list | str):
            return _REFUSED
        items = value if isinstance(value, list) else [value]
        inner = typing.get_args(hint)[0] if typing.get_args(hint) else Any
        converted = [_convert(item, inner) for item in items]
        return _REFUSED if any(item is _REFUSED for item in converted) else converted
    if origin is dict or hint is dict:
        return value if isinstance(value, dict) else _REFUSED
    if hint is float:
        is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST_FLOAT)
        return float(value) if is_number and not isinstance(value, bool) else _REFUSED
    if hint is int:
        if isinstance(value, float) and value.is_integer():  # 3.28e9 tokens
            return int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else _REFUSED
    return value if isinstance(hint, type) and isinstance(value, hint) else _REFUSED


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the type hint of each field; a choice that the library also takes as free text stays a choice.

    TrainingArguments says `IntervalStrategy | str`, and our own defaults `str`: any text would pass, and fail later.
    """
    hints = typing.get_type_hints(cls)
    for base in cls.__mro__[::-1]:
        for name in inspect.get_annotations(base):
            if name not in hints:
                continue
            said = typing.get_type_hints(base)[name]
            parts = typing.get_args(said) or (said,)
            choices = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
            if choices and str in parts:
                hints[name] = choices[0]
    return hints


def _shown(value: Any, most_characters: int = 200) -> str:
    """Return a value for a message: one line, and of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= most_characters else f"{text[:most_characters]}… ({len(text):,} characters)"


def _choices(hint: Any) -> list[str]:
    """Return the words that a hint allows, or none for one that is no choice."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    choices: list[str] = []
    for part in parts:
        if isinstance(part, type) and issubclass(part, enum.Enum):
            choices += [str(member.value) for member in part]
        elif typing.get_origin(part) is Literal:
            choices += [str(choice) for choice in typing.get_args(part)]
    return choices


def check_types(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values converted to the types of the dataclass's fields.

    Raises:
        InputError: an unknown key (with the nearest known one), a key that `cls.REFUSED_KEYS` explains, or a value
            of a wrong type or outside the bounds of its key.
    """
    hints = _hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    refused: dict[str, str] = getattr(cls, "REFUSED_KEYS", {})
    checked = {}
    for key, value in values.items():
        if key in refused:
            shown = key if key in SECRET_KEYS else f"{key}={_shown(value) if len(str(value)) > 200 else value}"
            raise InputError(f"{shown}: {refused[key]}")
        if key not in known:
            renamed = f" It is now called {RENAMED_KEYS[key]}." if key in RENAMED_KEYS else near_name(str(key), known)
            raise InputError(f"{key}: unknown key.{renamed} `--help` lists the keys.")
        ensure(
            "\0" not in str(value),
            f"{key}={value!r}: holds the character NUL, which no text or path can. Write it without.",
        )
        checked[key] = _convert(value, hints[key])
        if checked[key] is _REFUSED:
            choices = _choices(hints[key]) if isinstance(value, str) else []
            problem = "no such choice" if choices else f"wrong type ({type(value).__name__})"
            nearest = near_name(value, choices) if choices else ""
            raise InputError(f"{key}={_shown(value)}: {problem}. It must be {describe_type(hints[key])}.{nearest}")
        check_bounds(key, checked[key])
    return checked


def _takes_many(hint: Any) -> bool:
    """Return whether a type hint allows a list."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any((typing.get_origin(part) or part) is list for part in parts)


def _is_value(word: str, taken: int, hint: Any) -> bool:
    """Return whether a word behind `--key` and `taken` values is one more value of a key with this type hint."""
    if hint is None or _takes_many(hint):  # of a key that is unknown, all words are: the refusal names the key
        return True
    return taken == 0 and (hint is not bool or word in ("true", "false"))


def split_command(argv: list[str], *classes: type, most_words: int = 0) -> tuple[list[str], dict[str, Any]]:
    """Return the words of a command line that belong to no key, and the values of `--key` by key.

    Written are `--key value`, `--key=value`, `--key a b c` (a list) and a bare `--key` (true).

    Args:
        argv: the command line.
        classes: dataclasses whose keys may stand there; the values are not checked against them.
        most_words: how many words may stand there without a key.

    Raises:
        InputError: a key given twice or without the value that it needs, or a word too many.
    """
    hints: dict[str, Any] = {}
    for cls in classes:
        hints |= _hints(cls)
    free: list[str] = []
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            groups.append((key.replace("-", "_"), [value] if equals else []))
        elif groups and (not most_words or _is_value(word, len(groups[-1][1]), hints.get(groups[-1][0]))):
            groups[-1][1].append(word)
        else:
            ensure(len(free) < most_words, f"{word}: a value without a key. Write --key value, or --config file.yaml.")
            free.append(word)
    overrides: dict[str, Any] = {}
    for key, words in groups:
        ensure(key not in overrides, f"--{key}: given twice on the command line. Keep one.")
        hint = hints.get(key)
        ensure(words or hint is None or _convert(True, hint) is True, f"--{key}: needs a value. Write --{key} VALUE.")
        text_only = hint in (str, str | None, list[str], list[str] | None)
        parsed = [word if text_only and word != "null" else load_yaml(word, f"--{key} {word}") for word in words]
        overrides[key] = True if not words else parsed[0] if len(parsed) == 1 else parsed
    return free, overrides


def merge_config(cls: type, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the checked values of the YAML file that `config` names among the overrides, with the others on top.

    Raises:
        InputError: see `check_types`; also a file that is not YAML or not a flat mapping.
        MissingFileError: the YAML file does not exist.
    """
    path = overrides.pop("config", None)
    values: dict[str, Any] = {}
    if path is not None:
        ensure(isinstance(path, str), f"--config {path}: must be one YAML file.")
        file = ensure_file("config", path, "Give the path of a YAML file; `ttl init DIR` copies examples.")
        ensure(file.is_file(), f"config={path}: is a folder. Give a YAML file in it.")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"config={path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
        values = load_yaml(text, str(path)) or {}
        ensure(isinstance(values, dict), f"config={path}: must hold `key: value` lines, not a {type(values).__name__}.")
    return check_types(cls, {**values, **overrides})


def read_values(cls: type, argv: list[str], words: Sequence[str] = ()) -> dict[str, Any]:
    """Return the checked values of `--config file.yaml` with the overrides of the command line on top.

    Args:
        cls: a config dataclass.
        argv: the command line.
        words: keys whose values may stand there without the key, in this order.

    Raises:
        InputError: see `split_command` and `merge_config`.
        MissingFileError: the YAML file does not exist.
    """
    if {"--help", "-h"} & set(argv):
        print(describe_keys(cls))
        raise SystemExit(0)
    free, overrides = split_command(argv, cls, most_words=len(words))
    return merge_config(cls, {**overrides, **dict(zip(words, free, strict=False))})


def build(cls: type[Config], values: dict[str, Any], *, inside: bool = False) -> Config:
    """Return the dataclass made from checked values, which may stand `inside` another config, where no option reaches.

    Raises:
        InputError: a required key is missing, or the class refuses a value.
    """
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in values
    ]
    option = "" if inside else f" or give --{(missing or [''])[0]}"
    ensure(not missing, f"{', '.join(missing)}: missing. Write it in the YAML file{option}.")
    return cls(**values)


def parse(cls: type[Config], argv: list[str], words: Sequence[str] = ()) -> Config:
    """Return the config for a command line: `--config file.yaml`, then `--key value` overrides; see `read_values`.

    Raises:
        InputError: see `read_values` and `build`.
    """
    return build(cls, read_values(cls, argv, words))


def write_yaml(path: Path, values: dict[str, Any], comments: Iterable[str] = ()) -> None:
    """Write a flat config as YAML, keys in the order given, below lines of comment."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    path.write_text("".join(f"# {line}\n" for line in comments) + text, encoding="utf-8")
