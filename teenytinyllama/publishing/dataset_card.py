"""The dataset card (README.md) and what goes with it: every number in them comes from counts, shards and manifests.

Licences of sources: those stated, those that the user adds, what the Hub calls them, and what they restrict.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.input_files import hub_datasets
from ..data.instructions import SPLITS
from ..stage_folder import __version__, package_commit, versions
from .dataset_content import Content, DatasetOptions, features_of
from .dataset_shards import DATA_FOLDER, DatasetCounts, Shard, license_metadata, restrictions
from .wording import Markdown, card_environment, card_languages, one_line, without_place

# Upper ends of the Hub's size categories, in rows. Source: DatasetCardData of huggingface_hub 2.4.
_SIZES = {10**3: "1K", 10**4: "10K", 10**5: "100K", 10**6: "1M", 10**7: "10M", 10**8: "100M", 10**9: "1B",
          10**10: "10B", 10**11: "100B", 10**12: "1T"}  # fmt: skip
_TAGS = {
    "corpus": ["pretraining"],
    "packed": ["pretraining", "tokenized"],
    "instructions": ["instruction-tuning", "conversational"],
    "preferences": ["preference", "dpo", "trl"],
}
_MOST_LISTED = 100  # sources, and files, in the card; `dataset.json` has all
_LIBRARIES = ("pyarrow", "tokenizers", "transformers", "numpy")
_TITLES = {"en": "", "pt": " (português)"}


@dataclass(frozen=True)
class Described:
    """A dataset whose files are written, ready to be described."""

    repository: str
    source: list[str]
    content: Content
    counts: DatasetCounts
    shards: list[Shard]
    options: DatasetOptions

    @property
    def name(self) -> str:
        """Return `owner/name`, or the name of the source."""
        return self.repository or source_name(self.source)

    def splits(self) -> list[dict[str, Any]]:
        """Return name, rows, bytes in memory, bytes on disk and number of files of each split that has rows."""
        found = []
        for split in SPLITS:
            own = [shard for shard in self.shards if shard.split == split]
            if own:
                sums = {
                    name: sum(getattr(shard, name) for shard in own) for name in ("rows", "num_bytes", "size_bytes")
                }
                found.append({"name": split, "files": len(own), **sums})
        return found


def render_dataset_card(described: Described) -> str:
    """Return the card: YAML front matter and Markdown, in the languages that the options name."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(**front_matter(described)).to_yaml()
    bodies = [_body(described, language) for language in card_languages(described.options.language)]
    return f"---\n{data}\n---\n\n" + "\n---\n\n".join(bodies)


def front_matter(described: Described) -> dict[str, Any]:
    """Return the metadata of the card."""
    splits, kind = described.splits(), described.content.kind
    hub_inputs = hub_datasets(list(described.source))
    return {
        "language": ["pt"],
        **license_metadata(described.counts.licenses()),
        "pretty_name": described.name.rsplit("/", 1)[-1],
        "size_categories": [size_category(sum(split["rows"] for split in splits))],
        "task_categories": ["text-generation"],
        **({"task_ids": ["language-modeling"]} if kind in ("corpus", "packed") else {}),
        **({"source_datasets": hub_inputs} if hub_inputs else {}),
        "tags": ["teenytinyllama", "portuguese", *_TAGS[kind]],
        "dataset_info": {
            "features": features_of(described.content.schema),
            "splits": [
                {"name": split["name"], "num_bytes": split["num_bytes"], "num_examples": split["rows"]}
                for split in splits
            ],
            "download_size": sum(split["size_bytes"] for split in splits),
            "dataset_size": sum(split["num_bytes"] for split in splits),
        },
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split["name"], "path": f"{DATA_FOLDER}/{split['name']}-*"} for split in splits
                ],
            }
        ],
    }


def size_category(rows: int) -> str:
    """Return the Hub's size category of a number of rows.

    >>> size_category(999), size_category(1000), size_category(10**12)
    ('n<1K', '1K<n<10K', 'n>1T')
    """
    lower = ""
    for end, name in _SIZES.items():
        if rows < end:
            return f"{lower}n<{name}"
        lower = f"{name}<"
    return "n>1T"


def render_licenses(described: Described) -> str:
    """Return LICENSE.md: the licences of each source, for a dataset that has no single one."""
    template = card_environment().get_template("dataset_licenses.md.jinja")
    return template.render(sources=_sources(described.counts))


def describe_making(described: Described) -> dict[str, Any]:
    """Return what made the data: the manifests' own words and this publication's, for the card and `dataset.json`."""
    facts = described.content.facts
    steps = [manifest for manifest in (facts.get("packing"), facts.get("prepared")) if manifest]
    return {
        "steps": [
            {name: step.get(name) for name in ("stage", "command", "created", "package_version", "commit", "versions")}
            for step in steps
        ],
        "command": publish_command(described),
        "package_version": __version__,
        "commit": package_commit(),
        "versions": versions(_LIBRARIES),
    }


def publish_command(described: Described) -> str:
    """Return the command that publishes this dataset again; paths of this machine are cut to their last part."""
    shown = map(without_place, described.source)
    words = ["ttl", "publish", *shown, "--to", described.repository or f"folder:{described.name}"]
    for name, value in described.options.said().items():
        values = [str(part) for part in (value if isinstance(value, list) else [value])]
        words += [f"--{name}", *map(without_place, values)]
    return shlex.join(words)


def source_name(source: list[str]) -> str:
    """Return what a dataset without a repository is called: like its first file or folder."""
    path = Path(source[0].split("@")[0]).resolve()
    name = path.name if path.is_dir() else path.name.split(".")[0]
    return _plain(name).strip("-.") or "dataset"


def _plain(name: str) -> str:
    """Return a name with only letters that mean nothing in Markdown, HTML, Python strings and YAML."""
    return "".join(letter if letter.isalnum() or letter in "._-/" else "-" for letter in one_line(name).strip())


def _sources(counts: DatasetCounts) -> list[dict[str, Any]]:
    rows = [{"name": name, **source} for name, source in counts.sources.items()]
    return [{**row, "license": ", ".join(row["licenses"])} for row in sorted(rows, key=lambda row: -row["bytes"])]


def _body(described: Described, language: str) -> str:
    environment = card_environment()
    if language == "pt":
        swap = str.maketrans(",.", ".,")
        numbers = {name: environment.filters[name] for name in ("count", "fixed")}
        environment.filters["count"] = lambda number: numbers["count"](number).translate(swap)
        environment.filters["fixed"] = lambda number, digits: numbers["fixed"](number, digits).translate(swap)
    sources, facts = _sources(described.counts), described.content.facts
    name = described.name
    unit = "tokens" if described.content.kind == "packed" else "words"
    usage = environment.get_template("usage_dataset.py.jinja").render(
        repository=Markdown(name), split=described.splits()[0]["name"]
    )
    return environment.get_template(f"dataset_card.{language}.md.jinja").render(
        title=name.rsplit("/", 1)[-1]
        + (_TITLES[language] if len(card_languages(described.options.language)) > 1 else ""),
        repository=name,
        kind=described.content.kind,
        splits=described.splits(),
        sources=sources[:_MOST_LISTED],
        num_sources=len(sources),
        unit=unit,
        total={column: sum(row[column] for row in sources) for column in ("rows", "validation_rows", "bytes", unit)},
        restricted=restrictions(described.counts.licenses()),
        facts={"packing": None, "context": None, "dropped": {}, "validation_fraction": None, **facts},
        inputs=dict(list(described.content.inputs.items())[:_MOST_LISTED]),
        num_inputs=len(described.content.inputs),
        making=describe_making(described),
        usage=usage,
        citation=environment.get_template("citation_dataset.bib.jinja").render(
            repository=Markdown(name),
            owner=Markdown(name.split("/")[0] if "/" in name else ""),
            key="".join(letter for letter in name.lower() if letter.isalnum()),
        ),
        paper=environment.get_template("citation.bib").render(),
        version=__version__,
    )
