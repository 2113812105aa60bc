"""Prompts: what every system of a comparison is asked, the project's own 120 or those of any file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, ensure_file, read_utf8
from ..data.readers import read_records
from ..data.turns import ANSWER_KEYS, TURN_KEYS, RowError, read_turns
from ..stage_folder import parse_record
from ..tokenizer.encode import compose

# Of the project's prompts a request and the beginning of a text that asks the same, each with a person's answer.
OWN_FORMS = {"chat": "reference", "base": "continuation"}
KINDS = ("story", "explain", "rewrite", "short_answer", "list", "letter", "opinion", "reasoning")
_OWN_PATH = Path(__file__).with_name("prompts.jsonl")
_MOST_PROMPTS = 10_000  # each is judged by people


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: its name within the comparison.
        kind: of the task, such as `letter`; empty where a file names none.
        prompt: the text that a system gets.
        reference: a person's answer, or None.
    """

    id: str
    kind: str
    prompt: str
    reference: str | None = None


def read_prompts(source: str) -> list[Prompt]:
    """Return prompts: `chat` or `base`, the project's own in that form, or those of a file.

    A `.txt` file has a prompt a line. Another file (parquet, jsonl, json, csv) has rows with `prompt`, optionally `id`,
    `kind` and `reference`; or with `question` and `reference`, as a tuning's held-out answers (`answers.jsonl`); or
    instruction rows of any form that `ttl sft` reads, of which the first question is asked.

    Raises:
        InputError: no such file, a row without a prompt, two prompts of one id or of one text, or none at all.
    """
    if source in OWN_FORMS:
        rows = [parse_record(line) for line in _OWN_PATH.read_bytes().splitlines()]
        return [Prompt(row["id"], row["kind"], row[source], row[OWN_FORMS[source]]) for row in rows]
    path = ensure_file("prompts", source, f"Give a file of prompts, or one of {', '.join(OWN_FORMS)}.")
    ensure(path.is_file(), f"prompts={path}: is no file. Give a file of prompts.")
    found = list(_rows_of(path))
    ensure(found, f"prompts={path}: holds no prompt.")
    ensure(len(found) <= _MOST_PROMPTS, f"prompts={path}: holds {len(found):,} prompts, at most {_MOST_PROMPTS:,}.")
    _ensure_different(path, "id", [prompt.id for prompt in found])
    _ensure_different(path, "text", [prompt.prompt for prompt in found])
    return found


def _rows_of(path: Path) -> Iterator[Prompt]:
    if path.suffix == ".txt":
        lines = read_utf8(path).removeprefix("\ufeff").splitlines()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Prompt(f"{path.stem}-{number:04}", "", compose(line.strip()))
        return
    for number, row in enumerate(read_records("prompts", path), start=1):
        try:
            yield _prompt_of(row, f"{path.stem}-{number:04}")
        except (ValueError, TypeError) as error:
            raise InputError(
                f"prompts={path}: row {number}: {error}. A row has prompt (and id, kind, reference), or an instruction."
            ) from error


def _prompt_of(row: dict[str, Any], name: str) -> Prompt:
    """Return the prompt of a row.

    Raises:
        ValueError, TypeError: it has none.
    """
    filled = {key: value for key, value in row.items() if value is not None and value != ""}
    reference = filled.get("reference")
    is_held_out_answer = "question" in filled and "reference" in filled  # its `answer` is a model's
    text = filled.get("question" if is_held_out_answer else "prompt")
    if not is_held_out_answer and ("prompt" not in filled or set(filled) & {*ANSWER_KEYS, *TURN_KEYS}):
        try:
            messages = read_turns(row).messages
        except RowError as error:
            raise ValueError(str(error)) from error
        asked = next(number for number, message in enumerate(messages) if message["role"] == "user")
        text, reference = messages[asked]["content"], messages[asked + 1]["content"]
    assert text is not None
    for key, value in {"prompt": text, "reference": reference or "", "id": filled.get("id", name),
                       "kind": filled.get("kind", "")}.items():  # fmt: skip
        if not isinstance(value, str):
            raise TypeError(f"{key} is no text")
    if not text.strip():
        raise ValueError("its prompt is empty")
    return Prompt(filled.get("id", name), filled.get("kind", ""), compose(text), reference and compose(reference))


def _ensure_different(path: Path, what: str, values: Sequence[str]) -> None:
    seen: set[str] = set()
    for value in values:
        ensure(value not in seen, f"prompts={path}: two prompts have the {what} {value[:60]!r}. Leave one out.")
        seen.add(value)


def spread(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """Return so many prompts, as many of each kind as possible, the first ones of a kind, in their order.

    Raises:
        InputError: there are fewer.
    """
    if count is None:
        return list(prompts)
    ensure(1 <= count <= len(prompts), f"n_prompts={count}: must lie between 1 and {len(prompts)}, the prompts there.")
    seen: dict[str, int] = {}
    ranked = []
    for place, prompt in enumerate(prompts):
        seen[prompt.kind] = seen.get(prompt.kind, -1) + 1
        ranked.append((seen[prompt.kind], place))
    return [prompts[place] for _, place in sorted(sorted(ranked)[:count], key=lambda pair: pair[1])]


def dump_prompts(prompts: Iterable[Prompt]) -> bytes:
    """Return the lines of `prompts.jsonl`; a prompt without a reference has no such field."""
    rows = ({key: value for key, value in asdict(prompt).items() if value is not None} for prompt in prompts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
