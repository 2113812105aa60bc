"""Model cards (README.md): written from the files of a finished run, checked against them, or of published figures.

No number in a card is typed by hand: its front matter is what the Hub files a model under, with emissions in grams and
scores; its text is a template and sentences by language. `ttl card --check` compares numbers as a sequence, as they are
written, so one that was changed, added, removed or moved is found wherever the sentence around it went.

A reference card shows a published model in the same form, from a YAML file in which each figure has a source.
`python -m teenytinyllama.publishing.card FOLDER` renders every YAML file of a folder into a card beside it.
"""

import copy
import difflib
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..checks import InputError, MissingFileError, counted, ensure, ensure_file, read_utf8, run_main
from ..disk import replace_file
from ..evaluation.results import Results, Score, parse_results
from ..stage_folder import CARD_NAME
from .facts import STAGES, CardFacts, data_table, facts_of_run, safe_name
from .scores import (
    benchmark_facts,
    metric_ids,
    model_index_of_held_out,
    model_index_of_results,
)
from .wording import (
    LANGUAGE_DETAILS,
    LANGUAGES,
    Language,
    Markdown,
    card_environment,
    card_languages,
    escape_markdown,
    one_line,
    say,
    texts,
    widget_text,
)


def front_matter(facts: CardFacts) -> str:
    """Return the metadata as YAML, without the marks around it."""
    from huggingface_hub import ModelCardData

    run = facts.run
    index = model_index_of_held_out(run) + (model_index_of_results(facts.results) if facts.results else [])
    has_perplexity = run["results"]["final"]["perplexity"] is not None or facts.evaluations
    own = ["accuracy"] if run["stage"] == "dpo" else ["perplexity"] if has_perplexity else []
    metrics = own + (metric_ids(facts.results) if facts.results else [])
    data = ModelCardData(
        language="pt",
        license=facts.license,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["teenytinyllama", "llama", "portuguese", *(["conversational"] if facts.is_chat else [])],
        base_model=facts.hub_base,
        datasets=facts.hub_datasets or None,
        metrics=list(dict.fromkeys(metrics)) or None,
        model_name=facts.name.rsplit("/", 1)[-1] if index else None,
        eval_results=index or None,
        **_more(facts),
    )
    return str(data.to_yaml())


def _more(facts: CardFacts) -> dict[str, Any]:
    """Return the keys that not every card has, and that the Hub's client takes as they are."""
    more: dict[str, Any] = {"language_details": LANGUAGE_DETAILS}
    if facts.run.get("buckets"):
        more["buckets"] = facts.run["buckets"]
    if facts.hub_base is not None:
        more["base_model_relation"] = "adapter" if facts.is_adapter else "finetune"
    prompts = [widget_text(prompt) for prompt in facts.prompts]
    if prompts:
        more["widget"] = [
            {"messages": [{"role": "user", "content": prompt}]} if facts.is_chat else {"text": prompt}
            for prompt in prompts
        ]
    if facts.energy is not None:
        kg_before = (facts.branch or {}).get("kg_co2e") or 0.0
        more["co2_eq_emissions"] = {
            "emissions": float(f"{(facts.energy['kg'] + kg_before) * 1000:.4g}"),  # in grams, as the Hub wants them
            "source": "CodeCarbon",
            "training_type": "fine-tuning" if facts.is_chat else "pre-training",
            "geographical_location": one_line(facts.energy["country"]),
            "hardware_used": one_line(facts.run["training"]["hardware"]),
        }
    return more


_RUN_KEYS = ("package_version", "stage", "command", "commit", "created", "model", "data", "training", "results",
             "hashes", "versions")  # fmt: skip
# What the examples generate with.
_GENERATION = {"new_tokens": 60, "answer_tokens": 120, "temperature": 0.7}


def write_model_card(run_folder: str | Path, repository: str | None = None, language: str | None = None) -> Path:
    """Write the card of a finished run to its README.md and return that path; an older card is replaced as a whole.

    Raises:
        InputError: as `render_model_card`; then nothing is written.
    """
    text = render_model_card(run_folder, repository, language)
    path = Path(run_folder) / CARD_NAME
    replace_file(path, text)
    return path


def render_model_card(
    run_folder: str | Path,
    repository: str | None = None,
    language: str | None = None,
    checkpoints: list[dict[str, Any]] | None = None,
) -> str:
    """Return the model card of a finished run: YAML front matter and Markdown.

    Args:
        run_folder: without emissions.csv in it the card says that energy was not measured.
        repository: `owner/name` for the title and the examples; by default the run's `hub_model_id`, else the
            folder's name.
        language: `en`, `pt` or `both`; by default the run's `card_language`, else both.
        checkpoints: those that are or will be published, see `facts.check_checkpoints`; by default what
            checkpoints.json says.

    Raises:
        InputError: no run or an unfinished one, a file that lacks what the card needs, or an unknown language.
    """
    facts = facts_of_run(Path(run_folder), repository, checkpoints)
    return render_card(facts, card_languages(language or facts.run["config"].get("card_language")))


def render_card(facts: CardFacts, languages: Sequence[Language]) -> str:
    """Return a card in one language or several, one after the other."""
    title = escape_markdown(facts.name.rsplit("/", 1)[-1])
    parts = [f"---\n{front_matter(facts)}\n---\n", f"# {title}\n"]
    parts += [f"{say(language, 'other_language')}\n" for language in languages[1:]]
    for language in languages:
        parts += [] if language == languages[0] else [f"---\n\n# {say(language, 'language')}\n"]
        parts.append(_render_sections(facts, language))
    return "\n".join(parts)


def _render_sections(facts: CardFacts, language: Language) -> str:
    environment = card_environment(language, "not_measured" if facts.origin == "run" else "not_published")
    branch = Markdown(safe_name(facts.checkpoints[-1]["branch"])) if facts.checkpoints else None
    usage = {
        "repository": Markdown(facts.name),
        "is_chat": facts.is_chat,
        "is_adapter": facts.is_adapter,
        "revision": Markdown("main"),
        "branch": branch,
        **{key: Markdown(value) for key, value in _GENERATION.items()},
    }

    run = facts.run
    return environment.get_template("model_card.md.jinja").render(
        **{key: run[key] for key in _RUN_KEYS},
        **data_table(run["data"]["sources"]),
        facts=facts,
        language=language,
        is_run=facts.origin == "run",
        branch=branch,
        hours=None if run["training"]["seconds"] is None else run["training"]["seconds"] / 3600,
        **benchmark_facts(facts.results),
        usage_pipeline=environment.get_template("usage_pipeline.py.jinja").render(usage),
        usage_model=environment.get_template("usage_model.py.jinja").render(usage),
        usage_checkpoint=environment.get_template("usage_checkpoint.py.jinja").render(usage) if branch else "",
        citation_model=_citation(facts),
        citation_paper=(resources.files(__package__) / "templates" / "citation.bib").read_text(encoding="utf-8"),
    )


def _citation(facts: CardFacts) -> str:
    """Return BibTeX of the model itself, or nothing for one without an owner."""
    owner, slash, title = facts.name.partition("/")
    if not slash or facts.origin != "run":
        return ""
    key, year = facts.name.replace("/", "-"), safe_name(facts.run["created"][:4])
    return (
        f"@misc{{{key},\n  title = {{{title}}},\n  author = {{{owner}}},\n  year = {{{year}}},\n"
        f"  url = {{https://huggingface.co/{facts.name}}}\n}}"
    )


_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_HEADING = re.compile(r"#+ (.+)")
# A word with a digit in it: 1,234.5, -0.02, 5e-05, step500, 2024-01-30T12:00:00Z, a hash, a version.
_WORD = re.compile(r"(?<!\w)[-+−]?\w[\w.,:/+−-]*")
_NAME_IN_EXAMPLE = re.compile(r'from_pretrained\("([^"\n]+)"')
_MOST_SHOWN = 20


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
    text = read_utf8(path)
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
        elif key == "tags" and isinstance(found[key], list) and all(tag in found[key] for tag in value):
            continue  # tags may be added freely
        elif found[key] != value:
            where = f"line {lines.get(key, 1)} (metadata): {key}"
            problems.append(f"{where} is {_shown(found[key])}, but the run's files say {_shown(value)}")
    for key in (key for key in found if key not in expected and _has_number(found[key])):
        problems.append(f"line {lines.get(key, 1)} (metadata): {key}={_shown(found[key])} is not in the run's files")
    return problems


def _has_number(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_has_number(part) for part in (value.values() if isinstance(value, dict) else value))
    return type(value) in (int, float)


def _shown(value: Any) -> str:
    """Return a value of the metadata, short enough for a message."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf")).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= 200 else text[:200] + " …"


# What a file may say; what it leaves out is not published. `run` has the keys of a run's run.json.
_REFERENCE_KEYS = ("repository", "run", "energy", "evaluations", "suites", "prompts", "sources", "remarks")
_REFERENCE_RUN: dict[str, Any] = {
    "stage": None,
    "config": {"license": None},
    "model": dict.fromkeys(
        ("preset", "base_model", "num_parameters", "num_hidden_layers", "hidden_size", "vocab_size", "context")
    ),
    "data": {"sources": {}, "hub_datasets": [], "train_tokens": None, "validation_documents": None},
    "training": dict.fromkeys(
        ("steps", "tokens", "tokens_per_step", "epochs", "seconds", "tokens_per_second", "median_tokens_per_second",
         "world_size", "backend", "zero_stage", "precision", "hardware")
    ),
    "results": {"final": {"bits_per_byte": None, "perplexity": None}},
}  # fmt: skip
_SOURCE: dict[str, Any] = {"documents": None, "bytes": None, "tokens": None, "licenses": []}
_ENERGY = dict.fromkeys(
    ("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "kg", "country", "pue", "hours", "num_starts", "incomplete")
)
_EVALUATION = dict.fromkeys(("step", "tokens", "perplexity", "bits_per_byte", "kwh", "kg_co2e", "basis"))
_NOT_IN_A_REFERENCE = dict.fromkeys(("package_version", "command", "commit", "created"))


def read_reference(path: Path) -> CardFacts:
    """Return the facts of a reference card.

    Raises:
        InputError: no YAML, an unknown key, a missing one without which there is no card, or a wrong score.
    """
    try:
        content = yaml.safe_load(read_utf8(ensure_file("reference", path, "Give a YAML file.")))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from error
    ensure(isinstance(content, dict), f"{path}: must hold a YAML mapping.")
    _check_known(path, "", content, _REFERENCE_KEYS)
    for key in ("repository", "run", "sources"):
        ensure(content.get(key), f"{path}: key {key} is missing.")
    run = _filled(path, "run.", _REFERENCE_RUN, content["run"])
    ensure(run["stage"] in STAGES, f"{path}: key run.stage={run['stage']}: must be one of {', '.join(STAGES)}.")
    for name, source in run["data"]["sources"].items():
        run["data"]["sources"][name] = _filled(path, f"run.data.sources.{name}.", _SOURCE, source)
    for index, source in enumerate(content["sources"]):
        missing = [key for key in ("en", "pt", "url") if not isinstance(source, dict) or key not in source]
        ensure(not missing, f"{path}: key sources[{index}] lacks {', '.join(missing)}: each figure needs its source.")
    evaluations = [
        _filled(path, f"evaluations[{index}].", _EVALUATION, row)
        for index, row in enumerate(content.get("evaluations", []))
    ]
    energy = content.get("energy")
    return CardFacts(
        origin="reference",
        name=safe_name(content["repository"]),
        run={**run, **_NOT_IN_A_REFERENCE, "hashes": {}, "versions": {}},
        is_adapter=False,
        energy=None if energy is None else _filled(path, "energy.", _ENERGY, energy),
        evaluations=evaluations,
        num_evaluations=len(evaluations),
        results=_read_suites(path, content.get("suites", []), content["repository"]),
        checkpoints=None,
        samples=[],
        prompts=content.get("prompts", []),
        sources=tuple(content["sources"]),
        remarks=tuple(content.get("remarks", [])),
    )


def _check_known(path: Path, place: str, content: Any, known: Any) -> None:
    ensure(isinstance(content, dict), f"{path}: key {place.rstrip('.') or 'of the whole file'} must be a mapping.")
    unknown = sorted(set(content) - set(known))
    ensure(not unknown, f"{path}: key {place}{', '.join(map(str, unknown))} is unknown.")


def _filled(path: Path, place: str, template: dict[str, Any], content: Any) -> dict[str, Any]:
    """Return the content with the template's value for every key that it leaves out; an unknown key is refused."""
    _check_known(path, place, content, template)
    filled = copy.deepcopy(template)
    for key, value in content.items():
        nested = isinstance(template[key], dict) and template[key]  # an empty one takes any keys
        filled[key] = _filled(path, f"{place}{key}.", template[key], value) if nested else value
    return filled


def _read_suites(path: Path, suites: list[dict[str, Any]], model: str) -> Results | None:
    """Return scores; what a suite says beside its `scores` holds for each of them."""
    rows = []
    for index, suite in enumerate(suites):
        _check_known(path, f"suites[{index}].", suite, [*(field.name for field in fields(Score)), "scores"])
        shared = {key: value for key, value in suite.items() if key != "scores"}
        rows += [{**shared, **score} for score in suite.get("scores", [])]
    return parse_results({"model": model, "command": "", "versions": {}, "scores": rows}, path) if rows else None


def render_reference_card(path: Path) -> str:
    """Return the card of a file of published figures; see `read_reference`."""
    return render_card(read_reference(path), card_languages(None))


def write_reference_cards(folder: Path) -> list[Path]:
    """Write the card of every YAML file of a folder beside it and return their paths.

    Raises:
        InputError: no such file, or see `read_reference`; then nothing is written.
    """
    cards = {path.with_suffix(".md"): render_reference_card(path) for path in sorted(folder.glob("*.yaml"))}
    ensure(cards, f"folder={folder}: holds no YAML files of published figures.")
    for path, text in cards.items():
        path.write_text(text, encoding="utf-8")
    return list(cards)


def _main() -> None:
    ensure(len(sys.argv) == 2, "reference: takes one argument, the folder of the YAML files.")
    write_reference_cards(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(run_main(_main))
