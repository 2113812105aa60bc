"""Study: the prompts of a comparison, and the folder that `ttl compare` writes; one whose files do not fit is refused.

The prompts are the project's own 120 or those of any file. In the folder `study.json` names the systems,
`prompts.jsonl` holds the prompts, `answers/NAME.jsonl` the answers of a system. The hashes in `study.json` are those of
the bytes of these files, so that no answer can change under votes already given.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, ensure_file, read_utf8
from ..data.readers import read_records
from ..data.turns import ANSWER_KEYS, TURN_KEYS, RowError, read_turns
from ..stage_folder import parse_record, read_jsonl_records, sha256_content, sha256_file
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


STUDY_NAME, PROMPTS_NAME, ANSWERS_FOLDER = "study.json", "prompts.jsonl", "answers"
STUDY_FORMAT = 1
PAGE_LOCK_NAME = "voting.lock"  # held while the page is served
_FIX = "`ttl compare` makes such a folder."


@dataclass(frozen=True)
class Study:
    """The prompts of a comparison and what each system answered.

    Attributes:
        folder: where the study lies.
        kind: `base` (answers go on with the prompt), `chat` or `file`.
        prompts_sha256: hex, of the bytes of `prompts.jsonl`; each vote repeats it.
        prompts: text of each prompt by its id, in the order of the file.
        kinds: kind of each prompt, such as `letter`, by the prompt's id; empty where the file names none.
        systems: names of the systems, in the order of `study.json`.
        answers: text of each answer by the system's name and the prompt's id.
    """

    folder: Path
    kind: str
    prompts_sha256: str
    prompts: dict[str, str]
    kinds: dict[str, str]
    systems: tuple[str, ...]
    answers: dict[str, dict[str, str]]

    def answer_sha256(self, system: str, prompt: str) -> str:
        """Return the sha256 of the text of an answer, in hex."""
        return sha256_content(self.answers[system][prompt])

    def are_equal(self, prompt: str, one: str, other: str) -> bool:
        """Return whether two systems gave the same answer, white space at the ends aside: nobody can choose there."""
        return self.answers[one][prompt].strip() == self.answers[other][prompt].strip()


def read_study(folder: str | Path) -> Study:
    """Return the study in a folder.

    Raises:
        InputError: there is none; a file of it is missing, damaged or was changed since; it has fewer than two systems,
            two of one name, or answers that do not belong to its prompts.
    """
    folder = Path(folder)
    content = _read_description(folder)
    prompts_path = folder / PROMPTS_NAME
    ensure(prompts_path.is_file(), f"{prompts_path}: no such file. {_FIX}")
    ensure(
        sha256_file(prompts_path) == content["prompts_sha256"],
        f"{prompts_path}: was changed after the study was made. Make another study for other prompts.",
    )
    rows = read_jsonl_records(prompts_path, _check_prompt, "Make the study again.", is_ended=True)
    prompts = {row["id"]: row["prompt"] for row in rows}
    ensure(len(prompts) == len(rows) > 0, f"{prompts_path}: holds no prompt, or two of one id. Make the study again.")
    return Study(
        folder=folder,
        kind=content["kind"],
        prompts_sha256=content["prompts_sha256"],
        prompts=prompts,
        kinds={row["id"]: str(row.get("kind", "")) for row in rows},
        systems=tuple(system["name"] for system in content["systems"]),
        answers={system["name"]: _read_answers(folder, system, prompts) for system in content["systems"]},
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / STUDY_NAME
    ensure(path.is_file(), f"{folder}: has no {STUDY_NAME}, so it is no folder of a comparison. {_FIX}")
    try:
        content = parse_record(path.read_bytes())
        found = content["format"]
        ensure(
            found == STUDY_FORMAT,
            f"{path}: has format {found!r}, and this version reads format {STUDY_FORMAT}. Make the study again.",
        )
        names = [_checked_name(system) for system in content["systems"]]
        if not isinstance(content["prompts_sha256"], str) or content["kind"] not in ("base", "chat", "file"):
            raise TypeError("prompts_sha256 or kind has a value of no known form")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: is damaged ({reason}). Make the study again.") from error
    ensure(len(names) >= 2, f"{path}: names {len(names)} system(s), and a comparison needs two or more. {_FIX}")
    ensure(len({*names}) == len(names), f"{path}: names a system twice: {', '.join(names)}. Make the study again.")
    return content


def _checked_name(system: Any) -> str:
    """Return the name of a system, which is also the name of a file."""
    name = system["name"]
    if not isinstance(name, str) or not isinstance(system["sha256"], str):
        raise TypeError("the name or the sha256 of a system is no text")
    if not name or name.startswith(".") or set(name) & {"/", "\\", "\0"}:
        raise ValueError(f"{name!r} cannot be the name of a system")
    return name


def _check_prompt(row: dict[str, Any]) -> None:
    if not isinstance(row["id"], str) or not isinstance(row["prompt"], str) or not row["id"]:
        raise TypeError("id and prompt must be texts")


def _check_answer(row: dict[str, Any]) -> None:
    if not isinstance(row["id"], str) or not isinstance(row["answer"], str):
        raise TypeError("id and answer must be texts")


def _read_answers(folder: Path, system: dict[str, Any], prompts: dict[str, str]) -> dict[str, str]:
    """Return the answers of a system by the prompts' ids.

    Raises:
        InputError: the file is missing, damaged or was changed; or its answers belong to other prompts.
    """
    path = folder / ANSWERS_FOLDER / f"{system['name']}.jsonl"
    ensure(path.is_file(), f"{path}: no such file. {_FIX}")
    ensure(
        sha256_file(path) == system["sha256"],
        f"{path}: was changed after the study was made, so votes would be for other answers. Make another study.",
    )
    rows = read_jsonl_records(path, _check_answer, "Make the study again.", is_ended=True)
    for row in rows:
        expected = sha256_content(prompts.get(row["id"], ""))
        ensure(
            row["id"] in prompts and row.get("prompt_sha256", expected) == expected,
            f"{path}: the answer {row['id']!r} belongs to no prompt of {PROMPTS_NAME}. Make the study again.",
        )
    answers = {row["id"]: row["answer"] for row in rows}
    lacking = [prompt for prompt in prompts if prompt not in answers]
    ensure(not lacking, f"{path}: has no answer to {len(lacking)} prompts, first {lacking[:1]}. Make the study again.")
    ensure(len(answers) == len(rows), f"{path}: answers a prompt twice. Make the study again.")
    return answers
