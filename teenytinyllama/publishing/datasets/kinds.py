"""What kind of dataset a source is: told from the manifest of a folder of ours, or from the columns of the files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...arguments import read_values
from ...checks import ensure
from ...data.input_files import SAMPLE, SourceFile, list_data_files, resolve_files
from ...data.packing import PackConfig
from ...data.readers import SUFFIXES, read_records, text_column_of
from ...data.turns import ANSWER_KEYS, QUESTION_KEYS, TURN_KEYS
from ...manifest import MANIFEST_NAME
from ..safety import inside
from .content import Content
from .corpora import corpus_content
from .dialogues import conversations_content, instructions_content, preferences_content
from .options import DatasetOptions
from .tokens import packed_content

_STAGE_KINDS = {"pack": "packed", "conversations": "instructions", "preferences": "preferences"}
_RUN_FILES = ("config.json", "adapter_config.json", "config.yaml", "metrics.jsonl", "tokenizer.json")
_CONFIG_SUFFIXES = (".yaml", ".yml")
_KNOWN_FORMS = (
    "A corpus has a column `text` (or another, named with --text_column), instructions have `messages`, or "
    "`instruction` and `output`, or `prompt` and `completion`; preferences have `prompt`, `chosen` and `rejected`. Say "
    "which it is with --kind."
)


def is_dataset(source: list[str]) -> bool:
    """Return whether a source is a dataset rather than a model, a checkpoint, a run or a tokenizer; reads little.

    A folder or file of which nothing is known counts as a dataset when data files are in it; what is wrong with it is
    said by `dataset_uploads`.
    """
    if len(source) != 1 or source[0] == SAMPLE or source[0].startswith("hf://"):
        return bool(source)
    path = Path(source[0])
    if not path.is_dir():
        return path.name.lower().endswith((*SUFFIXES, *_CONFIG_SUFFIXES)) or "*" in source[0]
    stage = _stage(path)
    if stage is not None:
        return stage in _STAGE_KINDS
    if any((path / name).exists() for name in _RUN_FILES) or any(path.glob("checkpoint-*")):
        return False
    return (path / ".partial").is_dir() or any(list_data_files(path, SUFFIXES))


def read_content(source: list[str], options: DatasetOptions) -> Content:
    """Return the content of a source.

    Args:
        source: files, folders, globs, `hf://datasets/user/name@commit`, `sample`; a YAML file for `ttl pack`, whose
            inputs are meant; or one folder of `ttl pack`, `ttl conversations` or `ttl dpo`.
        options: of the user.

    Raises:
        InputError: nothing is there, its kind cannot be told, it is of several kinds, it is a link to elsewhere, or
            options that do not concern it.
    """
    ensure(source, "source: missing. Give the folder or the files of the dataset.")
    shown = ", ".join(source)
    inputs, settings = _of_config(source) if source[0].lower().endswith(_CONFIG_SUFFIXES) else (source, {})
    for text in inputs:
        if (folder := Path(text)).is_dir() and (stage := _stage(folder)) is not None:
            ensure(len(inputs) == 1, f"source={shown}: {text} was made by `{stage}` and is published alone.")
            return _of_stage(folder, stage, options)
        ensure(
            not (Path(text) / ".partial").is_dir(),
            f"source={text}: packing is not finished, it has no {MANIFEST_NAME}. Run the same `ttl pack` again first.",
        )
    _check_links([*inputs, *(options.validation_inputs or []), *(settings.get("validation_inputs") or [])])
    kind = options.kind if options.kind != "auto" else _kind_of_files(inputs, shown, options, settings)
    ensure(
        kind != "packed",
        f"kind=packed: {shown} is no folder of `ttl pack`, it has no {MANIFEST_NAME}.",
    )
    ensure(kind == "corpus" or options.packed is None, f"packed={options.packed}: concerns a corpus, not {kind}.")
    if kind == "corpus":
        return corpus_content(inputs, settings, options)
    _refuse(options, ("text_column", "metadata_column", "txt_unit"), kind)
    if kind == "instructions":
        return instructions_content(inputs, options)
    _refuse(options, ("validation_inputs",), kind)
    return preferences_content(inputs, options)


def _of_config(source: list[str]) -> tuple[list[str], dict[str, Any]]:
    ensure(len(source) == 1, f"source={', '.join(source)}: a config is published alone.")
    values = read_values(PackConfig, ["--config", source[0]])
    ensure(values.get("inputs"), f"source={source[0]}: has no `inputs`. Give a config for `ttl pack`.")
    return list(values["inputs"]), values


def _of_stage(folder: Path, stage: str, options: DatasetOptions) -> Content:
    ensure(
        stage in _STAGE_KINDS,
        f"source={folder}: was made by {stage!r}, which makes no dataset. Datasets are made by "
        f"{', '.join(_STAGE_KINDS)}, or are files with texts.",
    )
    kind = _STAGE_KINDS[stage]
    ensure(options.kind in ("auto", kind), f"kind={options.kind}: {folder} holds {kind}. Leave --kind out.")
    _refuse(options, (*options.corpus_keys(), "packed"), f"a folder of {stage!r}")
    if kind == "packed":
        return packed_content(folder)
    return conversations_content(folder) if kind == "instructions" else preferences_content([], options, folder)


def _refuse(options: DatasetOptions, names: Iterable[str], what: str) -> None:
    for name in names:
        value = getattr(options, name)
        ensure(value is None, f"{name}={value}: does not concern {what}. Leave it out.")


def _stage(folder: Path) -> str | None:
    """Return the stage in a folder's manifest; None without a manifest of ours."""
    try:
        found = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stage = found.get("stage") if isinstance(found, dict) else None
    return stage if isinstance(stage, str) else None


def _check_links(inputs: list[str]) -> None:
    for text in inputs:
        if Path(text).is_dir():
            for path in list_data_files(Path(text), SUFFIXES):
                inside(Path(text), path)


def _kind_of_files(inputs: list[str], shown: str, options: DatasetOptions, settings: dict[str, Any]) -> str:
    """Return the one kind that all files are of, by the columns of their first rows."""
    columns = [
        getattr(options, name) or settings.get(name, default)
        for name, default in (("text_column", "text"), ("metadata_column", "metadata"))
    ]
    kinds = {} if SAMPLE not in inputs else {SAMPLE: "corpus"}
    for file in resolve_files("source", inputs, SUFFIXES):
        is_txt = ".txt" in file.path.suffixes[-2:] or file.path.name.lower().endswith(".txt")
        kinds[file.name] = "corpus" if is_txt else _kind_of_rows(file, *columns)
    found = sorted(set(kinds.values()))
    if len(found) > 1:
        examples = " and ".join(f"{next(name for name in kinds if kinds[name] == kind)} of {kind}" for kind in found)
        ensure(False, f"source={shown}: holds {examples}. Publish them apart, or say what all are with --kind.")
    return found[0]


def _kind_of_rows(file: SourceFile, text_column: str, metadata_column: str) -> str:
    """Return the kind of a file's first row."""
    row = next(iter(read_records("source", file.path)), None)
    ensure(row is not None, f"source={file.path}: holds no row. Take it away or fill it.")
    assert row is not None
    names = {name for name, value in row.items() if value is not None}
    is_asked = bool(names & {*QUESTION_KEYS, "input"})
    forms = {
        "preferences": {"chosen", "rejected"} <= names,
        "instructions": bool(names & set(TURN_KEYS)) or (is_asked and bool(names & set(ANSWER_KEYS))),
        "corpus": text_column in row,
    }
    if not any(forms.values()):  # a column called otherwise is guessed only where nothing else is told
        with_text = [name for name, value in row.items() if isinstance(value, str)]
        forms["corpus"] = text_column_of(list(row), with_text, text_column, metadata_column) is not None
    found = [kind for kind, fits in forms.items() if fits]
    ensure(
        len(found) == 1,
        f"source={file.path}: its kind cannot be told from the columns {', '.join(row) or '(none)'}"
        f"{' (' + ' or '.join(found) + ')' if found else ''}. {_KNOWN_FORMS}",
    )
    return found[0]
