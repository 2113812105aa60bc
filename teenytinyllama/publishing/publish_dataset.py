"""Datasets on the Hub: `ttl publish FOLDER_OR_FILES --to owner/name` writes parquet shards and a card, and sends them.

Every number in the card (README.md), in LICENSE.md and in `dataset.json` comes from counts, shards and manifests. With
`--to folder:PATH` or `--dry_run` nothing is sent.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..checks import RunFailedError, ensure, hub_license
from ..data.input_files import hub_datasets
from ..data.instructions import SPLITS
from ..stage_folder import CARD_NAME, DATASET_RECORD_NAME, __version__, package_commit, versions, without_place
from .connection import open_hub
from .contents import license_of_whole, passport_files
from .dataset_content import DatasetOptions, read_content
from .dataset_shards import (
    DATA_FOLDER,
    DatasetContent,
    DatasetCounts,
    Shard,
    Staging,
    count,
    discard_staging,
    parse_licenses,
    write_shards,
)
from .publish import PublishConfig, push_and_say, refuse_bucket, write_folder
from .safety import (
    Upload,
    UploadFile,
    check_folder,
    check_repository,
    describe_uploads,
    folder_of,
    record_file,
)
from .wording import (
    LANGUAGE_DETAILS,
    Language,
    Markdown,
    card_environment,
    card_languages,
    command_without_places,
    one_line,
)

if TYPE_CHECKING:
    import pyarrow

_FORMAT = 1  # of the shards: a change makes what lies in a staging folder out of date
_UNITS = {"corpus": "documents", "packed": "rows of tokens", "instructions": "conversations",
          "preferences": "pairs of answers"}  # fmt: skip
LICENSE_NAME = "LICENSE.md"
UNKNOWN = "unknown"
_RESTRICTIONS = {
    "no_derivatives": re.compile(r"\bnd\b|no-?\s?deriv", re.IGNORECASE),
    "non_commercial": re.compile(r"\bnc\b|non-?\s?commercial", re.IGNORECASE),
    "share_alike": re.compile(r"\bsa\b|share-?\s?alike|\b[al]?gpl\b|\bgfdl\b|\bodbl\b", re.IGNORECASE),
}
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
    content: DatasetContent
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
        "language_details": LANGUAGE_DETAILS,
        **(license_of_whole(described.content.facts) or license_metadata(described.counts.licenses())),
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
    template = card_environment("en").get_template("dataset_licenses.md.jinja")
    return template.render(sources=_sources(described.counts))


def describe_making(described: Described) -> dict[str, Any]:
    """Return what made the data: the manifests' own words and this publication's, for the card and `dataset.json`."""
    facts = described.content.facts
    steps = [manifest for name in ("built", "packing", "prepared") if (manifest := facts.get(name))]
    return {
        "steps": [
            {name: step.get(name) for name in ("stage", "created", "package_version", "commit", "versions")}
            | {"command": command_without_places(step.get("command") or "")}
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


def _body(described: Described, language: Language) -> str:
    environment = card_environment(language)
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
        passport=facts.get("passport"),
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


def license_metadata(names: Iterable[str]) -> dict[str, Any]:
    """Return the keys about licences for a card's front matter: one licence, or `other` with a list of them."""
    found = sorted({one_line(name).strip() for name in names})
    identifiers = {hub_license(name) or name for name in found}
    if len(identifiers) == 1 and (identifier := hub_license(found[0])):
        return {"license": identifier}
    only = re.sub(r"[^a-z0-9.]+", "-", found[0].lower()).strip("-.") if len(identifiers) == 1 else ""
    return {
        "license": "other",
        "license_name": only or "per-source",
        "license_link": LICENSE_NAME,
        "license_details": ", ".join(found),
    }


def restrictions(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the licences that forbid changed copies or commercial use or bind what is made of them; and `unknown`."""
    found = sorted(set(names))
    kinds = {kind: [name for name in found if pattern.search(name)] for kind, pattern in _RESTRICTIONS.items()}
    return {**kinds, UNKNOWN: [name for name in found if name.lower() == UNKNOWN]}


def features_of(schema: "pyarrow.Schema") -> list[dict[str, Any]]:
    """Return a schema as `dataset_info` of a card spells features, which `datasets` reads back as the same ones."""
    return [{"name": name, **_feature(kind)} for name, kind in zip(schema.names, schema.types, strict=True)]


def _feature(kind: "pyarrow.DataType") -> dict[str, Any]:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        fields = [kind.field(place) for place in range(kind.num_fields)]
        return {"struct": [{"name": part.name, **_feature(part.type)} for part in fields]}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        inner = _feature(kind.value_type)
        length = {"length": kind.list_size} if pyarrow.types.is_fixed_size_list(kind) else {}
        return {"list": inner.get("struct") or inner["dtype"], **length}
    return {"dtype": str(kind)}


def dataset_uploads(source: list[str], repository: str, staging: Path, options: DatasetOptions) -> Upload:
    """Write the shards of a dataset and return everything that its repository is to hold.

    Args:
        source: see `read_content`.
        repository: `owner/name`; empty for a folder, which is called like the source.
        staging: folder for the shards. A second call with the same source finds those that are finished, so a kill
            costs one shard; they must stay until they are sent.
        options: of the user.

    Raises:
        InputError: see `read_content` and `count`; also a staging folder inside the source, which the
            next call would read. Nothing is written before everything has been read once.
    """
    if repository:
        check_repository(repository)
    licenses = parse_licenses(options.license)
    content = read_content(source, options)
    for text in source:
        ensure(
            not Path(text).is_dir() or not staging.resolve().is_relative_to(Path(text).resolve()),
            f"staging={staging}: lies inside {text}, which is to be published. Choose a folder elsewhere.",
        )
    shard_bytes = int(options.shard_megabytes * 1e6)
    place = Staging(staging, _plan(content, options, shard_bytes))
    counts = place.counts()
    if counts is None:
        counts = count(content, licenses, shard_bytes)
        place.keep_counts(counts)
    shards = write_shards(place, content, licenses, counts)
    described = Described(repository, source, content, counts, shards, options)
    files = [UploadFile(CARD_NAME, render_dataset_card(described).encode())]
    if license_metadata(counts.licenses())["license"] == "other":
        files.append(UploadFile(LICENSE_NAME, render_licenses(described).encode()))
    files += passport_files(content.facts)
    data = [UploadFile(shard.path, staging / shard.path) for shard in shards]
    files.append(_record(described, [file.path for file in [*files, *data]]))
    rows = sum(shard.rows for shard in shards)
    message = f"{rows:,} {_UNITS[content.kind]} in {len(shards)} file{'' if len(shards) == 1 else 's'}"
    return Upload(repository, "dataset", "main", (*files, *data), message, record=DATASET_RECORD_NAME)


def _plan(content: DatasetContent, options: DatasetOptions, shard_bytes: int) -> dict[str, Any]:
    """Return all that decides the shards' bytes."""
    decided = {name: value for name, value in options.said().items() if name not in ("packed", "language")}
    split = content.facts.get("validation_fraction")
    return {
        "format": _FORMAT,
        "kind": content.kind,
        "inputs": content.inputs,
        "options": {**decided, "validation_fraction": split, "shard_bytes": shard_bytes},
        "columns": str(content.schema),
        "versions": versions(("pyarrow",)),
    }


def _record(described: Described, paths: list[str]) -> UploadFile:
    """Return `dataset.json`: what the repository holds and what made it, for programs and for the next publication."""
    content, facts = described.content, described.content.facts
    more: dict[str, Any] = {
        "kind": content.kind,
        "splits": described.splits(),
        "sources": described.counts.sources,
        "inputs": content.inputs,
        "validation_fraction": facts.get("validation_fraction"),
        "dropped": facts.get("dropped", {}),
        **{key: facts[key] for key in ("context", "vocab_size", "tokenizer_sha256") if key in facts},
        "making": describe_making(described),
        "hashes": {shard.path: shard.sha256 for shard in described.shards},
    }
    return record_file(DATASET_RECORD_NAME, {"kind": content.kind, **content.identity}, paths, more)


def default_staging(source: list[str]) -> Path:
    """Return where the shards of a source are kept until they are sent, unless the user says otherwise.

    Beside the source rather than in it, where the next reading would find them.
    """
    first = Path(source[0])
    folder = first.parent if first.exists() else Path()
    return folder / f"{source_name(source)}.publish"


_OF_RUNS = ("follow", "checkpoints", "optimizer_state", "base_model", "skip_damaged", "poll_seconds")


@dataclass
class PublishDatasetConfig(DatasetOptions, PublishConfig):
    """`ttl publish` of a dataset: where to, who may see it, and what it is made of."""

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **PublishConfig.REFUSED_KEYS,
        **dict.fromkeys(_OF_RUNS, "concerns runs, and this is a dataset. Leave it out."),
    }

    staging: str | None = field(
        default=None,
        metadata={"help": "folder for the parquet files until they are sent; null: NAME.publish beside the source"},
    )

    def __post_init__(self) -> None:
        """Refuse what neither a publication nor a dataset can have.

        Raises:
            InputError: see `PublishConfig` and `DatasetOptions`.
        """
        PublishConfig.__post_init__(self)
        refuse_bucket(self, "this is a dataset")
        DatasetOptions.__post_init__(self)


def publish_dataset(source: list[str], config: PublishDatasetConfig) -> None:
    """Publish a dataset, or say what would be published.

    The token is tried before the shards are written, which can take hours. They are deleted once they have arrived; a
    failure and a dry run leave them for the next start.

    Raises:
        InputError: see `dataset_uploads` and `hub.push`.
        RunFailedError: the Hub gives no good answer in time.
    """
    if config.is_folder:
        check_folder(folder_of(config.to))
    hub = None if config.dry_run or config.is_folder else open_hub(config.limits())
    staging = Path(config.staging).expanduser() if config.staging else default_staging(source)
    upload = dataset_uploads(source, config.repository, staging, config)
    if config.dry_run:
        print(describe_uploads([upload]))
        print(f"the files are kept in {staging} for the publication itself")
        return
    if hub is None:
        print(write_folder([upload], folder_of(config.to)))
    else:
        try:
            push_and_say(hub, upload, config)
        except RunFailedError as error:
            raise RunFailedError(
                f"{error} {staging} keeps what is written; the same command goes on from there."
            ) from error
    discard_staging(staging)
