"""Study: reads the folder of a comparison, which `ttl compare` writes, and refuses one whose files do not fit together.

`study.json` names the systems, `prompts.jsonl` holds the prompts, `answers/NAME.jsonl` the answers of a system. The
hashes in `study.json` are those of the bytes of these files, so that no answer can change under votes already given.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from ..stage_folder import parse_record, read_jsonl_records, sha256_content, sha256_file

STUDY_NAME, PROMPTS_NAME, ANSWERS_FOLDER = "study.json", "prompts.jsonl", "answers"
STUDY_FORMAT = 1
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
