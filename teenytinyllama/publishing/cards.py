"""The model card (README.md), rendered from the files of a finished run: no number in it is typed by hand."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from .benchmarks import benchmark_progress, benchmark_tables, trivial_names
from .escaping import Markdown, escape_markdown
from .facts import CardFacts, data_table, facts_of_run, safe_name
from .metadata import front_matter
from .wording import Language, card_languages, say, sentence_environment

CARD_NAME = "README.md"
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
    partial = path.with_name(CARD_NAME + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def render_model_card(
    run_folder: str | Path,
    repository: str | None = None,
    language: str | None = None,
    checkpoints: list[dict[str, Any]] | None = None,
) -> str:
    """Return the model card of a finished run: YAML front matter and Markdown.

    Args:
        run_folder: has run.json, and where the run made them metrics.jsonl, samples.jsonl, emissions.csv, loss.png,
            results.json and checkpoints.json. Without emissions.csv the card says that energy was not measured.
        repository: `owner/name` for the title and the examples; by default the run's `hub_model_id`, else the
            folder's name.
        language: `en`, `pt` or `both`; by default the run's `card_language`, else both.
        checkpoints: those that are or will be published, see `run_files.check_checkpoints`; by default what
            checkpoints.json says.

    Raises:
        InputError: the folder is no run or an unfinished one, one of its files lacks what the card needs (the message
            names file and key), or an unknown language.
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
    environment = sentence_environment(language, "not_measured" if facts.origin == "run" else "not_published")
    branch = Markdown(safe_name(facts.checkpoints[-1]["branch"])) if facts.checkpoints else None
    usage = {
        "repository": Markdown(facts.name),
        "is_chat": facts.is_chat,
        "is_adapter": facts.is_adapter,
        "revision": Markdown("main"),
        "branch": branch,
        **{key: Markdown(value) for key, value in _GENERATION.items()},
    }

    def example(name: str) -> str:
        return environment.get_template(name).render(usage)

    run, results = facts.run, facts.results
    return environment.get_template("model_card.md.jinja").render(
        **{key: run[key] for key in _RUN_KEYS},
        **data_table(run["data"]["sources"]),
        facts=facts,
        language=language,
        is_run=facts.origin == "run",
        branch=branch,
        hours=None if run["training"]["seconds"] is None else run["training"]["seconds"] / 3600,
        suites=benchmark_tables(results) if results else [],
        progress=benchmark_progress(results) if results else None,
        trivial=", ".join(trivial_names(results)) if results else "",
        benchmark_versions=", ".join(map(" ".join, results.versions.items())) if results else "",
        usage_pipeline=example("usage_pipeline.py.jinja"),
        usage_model=example("usage_model.py.jinja"),
        usage_checkpoint=example("usage_checkpoint.py.jinja") if branch else "",
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
