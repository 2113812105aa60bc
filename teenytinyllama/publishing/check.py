"""`ttl card --check`: whether every number and every key of metadata in a card is what the run's files say.

Prose may have been edited by hand. Numbers are compared as a sequence, as they are written, so one that was changed,
added, removed or moved is found wherever the sentence around it went.
"""

import difflib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checks import InputError, MissingFileError, counted, ensure
from .cards import CARD_NAME, render_model_card
from .wording import LANGUAGES, texts

_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_HEADING = re.compile(r"#+ (.+)")
# A word with a digit in it: 1,234.5, -0.02, 5e-05, step500, 2024-01-30T12:00:00Z, a hash, a version.
_WORD = re.compile(r"(?<!\w)[-+−]?\w[\w.,:/+−-]*")
_NAME_IN_EXAMPLE = re.compile(r'from_pretrained\("([^"\n]+)"')
_MOST_SHOWN = 20
_ADDED_FREELY = ("tags",)  # lists that may hold more than the files say


@dataclass(frozen=True)
class _Number:
    """A number as written, with its line (from 1), that line's text and the heading above it."""

    text: str
    line: int
    context: str
    heading: str


def check_model_card(run_folder: str | Path, repository: str | None = None, language: str | None = None) -> str:
    """Compare a run's README.md with the run's files and return what was compared, as a line.

    Args:
        run_folder: of a finished run.
        repository: the name in the card; by default the one that its example loads.
        language: `en`, `pt` or `both`; by default the languages that the card has.

    Raises:
        InputError: no card, or numbers or metadata that disagree; the message names line, number and the files' number.
    """
    path = Path(run_folder) / CARD_NAME
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. Write the card with `ttl card {run_folder}`.")
    text = path.read_text(encoding="utf-8")
    found, found_body, found_line = _split(text, path)
    name = _NAME_IN_EXAMPLE.search(found_body)
    rendered = render_model_card(
        run_folder, repository or (name[1] if name else None), language or _language_of(found_body)
    )
    expected, expected_body, _ = _split(rendered, path)
    numbers = _numbers(expected_body, 1)
    problems = [*_compare_metadata(expected, found, text), *_compare_numbers(numbers, _numbers(found_body, found_line))]
    more = f"\n  and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
    ensure(
        not problems,
        f"{path}: disagrees with the run's files in {counted(len(problems), 'place')}:\n  "
        + "\n  ".join(problems[:_MOST_SHOWN])
        + more
        + f"\nUndo these changes, or write the card again with `ttl card {run_folder}`.",
    )
    return f"{path}: {len(numbers)} numbers and {len(expected)} keys of metadata agree with the run's files"


def _split(text: str, path: Path) -> tuple[dict[str, Any], str, int]:
    """Return a card's metadata, its body, and the line on which the body begins."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        raise InputError(f"{path}: has no metadata between two lines of ---. Write the card again with `ttl card`.")
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise InputError(f"{path}: its metadata is not valid YAML ({' '.join(str(error).split())}).") from error
    ensure(
        isinstance(metadata, dict), f"{path}: its metadata is no YAML mapping. Write the card again with `ttl card`."
    )
    return metadata, text[match.end() :], match[0].count("\n") + 1


def _language_of(body: str) -> str | None:
    """Return the languages that a card has, by the heading of its details."""
    headings = set(_HEADING.findall(body))
    found = [language for language in LANGUAGES if texts(language)["details"] in headings]
    return None if not found else "both" if len(found) > 1 else found[0]


def _numbers(body: str, first_line: int) -> list[_Number]:
    numbers, heading, in_code = [], "", False
    for line, text in enumerate(body.split("\n"), start=first_line):
        in_code ^= text.startswith("```")
        if not in_code and (match := _HEADING.fullmatch(text)):
            heading = match[1]
        for word in _WORD.findall(text):
            if re.search(r"\d", word):
                numbers.append(_Number(word.rstrip(".,:/-−"), line, text.strip(), heading))
    return numbers


def _compare_numbers(expected: list[_Number], found: list[_Number]) -> list[str]:
    """Return a line for each number that was changed, added or removed."""
    problems = []
    matcher = difflib.SequenceMatcher(
        None, [number.text for number in expected], [number.text for number in found], autojunk=False
    )
    for _, start, end, found_start, found_end in (code for code in matcher.get_opcodes() if code[0] != "equal"):
        for right, wrong in itertools.zip_longest(expected[start:end], found[found_start:found_end]):
            if right is None:
                problems.append(f"line {wrong.line} ({wrong.heading}): {wrong.text} is not in the run's files")
            elif wrong is not None:
                problems.append(
                    f"line {wrong.line} ({wrong.heading}): {wrong.text}, but the run's files say {right.text}"
                )
            else:
                problems.append(f"{right.heading}: {right.text} of the run's files is missing ({right.context[:80]})")
    return problems


def _compare_metadata(expected: dict[str, Any], found: dict[str, Any], text: str) -> list[str]:
    """Return a line for each key that was changed or removed, and for each that was added with a number."""
    problems = []
    lines = {line.split(":")[0]: number for number, line in reversed(list(enumerate(text.split("\n"), start=1)))}
    for key, value in expected.items():
        if key not in found:
            problems.append(f"metadata: {key} is missing; the run's files say {_shown(value)}")
        elif found[key] != value and not _only_adds(key, value, found[key]):
            where = f"line {lines.get(key, 1)} (metadata): {key}"
            problems.append(f"{where} is {_shown(found[key])}, but the run's files say {_shown(value)}")
    for key in (key for key in found if key not in expected and _has_number(found[key])):
        problems.append(f"line {lines.get(key, 1)} (metadata): {key}={_shown(found[key])} is not in the run's files")
    return problems


def _only_adds(key: str, expected: Any, found: Any) -> bool:
    return key in _ADDED_FREELY and isinstance(found, list) and all(value in found for value in expected)


def _has_number(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_has_number(part) for part in (value.values() if isinstance(value, dict) else value))
    return type(value) in (int, float)


def _shown(value: Any) -> str:
    """Return a value of the metadata, short enough for a message."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf")).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= 200 else text[:200] + " …"
