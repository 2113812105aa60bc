"""The config of `ttl corpus`: sources with their licences, the steps and their settings, and how the work is run."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..arguments import build, check_types
from ..checks import InputError, ensure, model_license, near_name
from ..data.sources import ensure_encoding

# Of 60 % of text and 40 % of instructions and the like, a source may be read so often: the value of repeated text falls
# slowly up to four epochs (Muennighoff et al. 2023, arXiv 2305.16264).
MAX_EPOCHS = 4.0
StepSettings = dict[str, Any] | Literal[False]
# The keys of steps, each a mapping of settings or false.
STEP_NAMES = ("html", "normalise", "boilerplate", "language", "variety", "quality", "personal_data", "duplicates",
              "toxicity", "decontamination")  # fmt: skip


@dataclass
class SourceConfig:
    """One source of a corpus: where its documents are, whose they are, and how much of the corpus they become."""

    inputs: list[str] = field(
        default_factory=list,
        metadata={"help": "files, folders, globs or hf://datasets/user/name@commit: parquet, jsonl, json, csv, tsv, "
                          "txt, html, warc"},
    )  # fmt: skip
    license: str = field(
        default="", metadata={"help": "licence of the source, by the Hub's name, or `public-domain`, `other`"}
    )
    url: str = field(default="", metadata={"help": "where the source comes from, for the passport"})
    revision: str = field(default="", metadata={"help": "version or date of the source, for the passport"})
    register: str = field(
        default="", metadata={"help": "kind of text: law, fiction, news, speech, documentation, web, …"}
    )
    text_column: str = field(default="text", metadata={"help": "column or key that holds the text"})
    html_column: str | None = field(
        default=None, metadata={"help": "column that holds HTML pages instead; files .html need none"}
    )
    url_column: str | None = field(default=None, metadata={"help": "column with the address of each document"})
    metadata_column: str = field(default="metadata", metadata={"help": "optional column, see `ttl pack`"})
    conversations: bool = field(
        default=False, metadata={"help": "rows are instructions: they are written as turns of text"}
    )
    txt_unit: Literal["file", "line"] = field(default="file", metadata={"help": "see `ttl pack`"})
    encoding: str | None = field(default=None, metadata={"help": "see `ttl pack`"})
    weight: float = field(
        default=1.0, metadata={"help": "times that the source is read; with a fraction, of its documents"}
    )
    share: float | None = field(
        default=None, metadata={"help": "of the corpus in tokens, instead of a weight; then all sources have one"}
    )
    max_epochs: float = field(default=MAX_EPOCHS, metadata={"help": "most times that the source may be read"})
    steps: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "settings of steps for this source alone, as at the top of the config"}
    )

    def __post_init__(self) -> None:
        """Check the source by itself.

        Raises:
            InputError: no input, no known licence, or a weight that cannot be.
        """
        ensure(self.inputs, "inputs: is empty. Give at least one file, folder or dataset.")
        ensure(self.license, "license: is missing. Nobody may use a corpus whose licence is not known.")
        self.license = (
            self.license if self.license in ("public-domain", "other") else model_license("license", self.license)
        )
        for name in ("weight", "share", "max_epochs"):
            value = getattr(self, name)
            ensure(value is None or value > 0, f"{name}={value}: must be positive. Leave the source out instead of 0.")
        ensure_encoding(self.encoding)
        for name, value in self.steps.items():
            ensure(
                isinstance(value, dict) or value is False,
                f"steps.{name}={value}: must be a mapping of settings, or false to leave the step out.",
            )
        ensure(self.share is None or self.share <= 1, f"share={self.share}: must be at most 1.")
        ensure(
            self.share is not None or self.weight <= self.max_epochs,
            f"weight={self.weight:g}: more than max_epochs={self.max_epochs:g} times. Lower one, or raise the other.",
        )


def nested(cls: type, where: str, values: Any) -> Any:
    """Return a dataclass made from a mapping inside the config; messages say where it stands.

    Raises:
        InputError: it is no mapping, or the class refuses it.
    """
    ensure(isinstance(values, dict), f"{where}={values}: must be a mapping of keys.")
    known = [field.name for field in fields(cls) if field.init]
    for name in values:
        ensure(
            name in known, f"{where}.{name}: unknown key.{near_name(str(name), known)} Known are {', '.join(known)}."
        )
    try:
        return build(cls, check_types(cls, values), inside=True)
    except InputError as error:
        raise type(error)(f"{where}.{error}") from error


@dataclass
class EvaluationSetConfig:
    """One evaluation set whose items must not be in the corpus."""

    inputs: list[str] = field(default_factory=list, metadata={"help": "files, folders, globs or datasets of the Hub"})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "columns of an item's texts, in the order in which models read them"}
    )

    def __post_init__(self) -> None:
        """Check that the set is one.

        Raises:
            InputError: it has no inputs, or no columns.
        """
        for name in ("inputs", "columns"):
            ensure(getattr(self, name), f"{name}: is missing. A set needs inputs and columns.")


@dataclass
class MixingConfig:
    """How the cleaned sources become the corpus."""

    tokenizer: str | None = field(
        default=None,
        metadata={"help": "tokenizer that counts the tokens as `ttl pack` will; null: estimated at 5 bytes a token"},
    )
    total_tokens: float | None = field(
        default=None, metadata={"help": "with shares: tokens of the corpus; null: the most that max_epochs allow"}
    )
    upsample_by_cluster: bool = field(
        default=False, metadata={"help": "read a document more often that had near-duplicates, by FineWeb-2's steps"}
    )
    validation_fraction: float = field(
        default=0.0, metadata={"help": "share of the documents held out, as by `ttl pack`"}
    )
    shard_megabytes: int = field(default=256, metadata={"help": "size of the parquet files"})

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: one is out of its range.
        """
        ensure(
            0.0 <= self.validation_fraction <= 0.5,
            f"validation_fraction={self.validation_fraction:g}: must lie between 0 and 0.5. 0.01 is usual.",
        )
        ensure(self.shard_megabytes >= 1, f"shard_megabytes={self.shard_megabytes}: must be 1 or more. 256 is usual.")
        ensure(
            self.total_tokens is None or self.total_tokens > 0, f"total_tokens={self.total_tokens}: must be positive."
        )


@dataclass
class BuildConfig:
    """`ttl corpus`: from raw sources to a documented corpus."""

    output_dir: str = field(metadata={"help": "folder for the corpus, its passport, and the work on the way"})
    sources: dict[str, Any] = field(
        metadata={
            "help": "the sources by name; recipes/configs/corpus.yaml has their keys and those of the steps (ttl init)"
        }
    )
    html: StepSettings = field(default_factory=dict, metadata={"help": "text out of HTML pages; false: left out"})
    normalise: StepSettings = field(
        default_factory=dict,
        metadata={"help": "composed accents, repaired mojibake, no control characters; false: left out"},
    )
    boilerplate: StepSettings = field(
        default_factory=dict,
        metadata={"help": "lines that are no text: menus, cookies, page headers, attendance lists; false: left out"},
    )
    language: StepSettings = field(
        default_factory=dict, metadata={"help": "documents in other languages; false: left out"}
    )
    variety: StepSettings = field(
        default_factory=dict,
        metadata={"help": "Brazilian and European Portuguese, told apart and perhaps filtered; false: left out"},
    )
    quality: StepSettings = field(
        default_factory=dict,
        metadata={
            "help": "the rules of Gopher, C4 and FineWeb with FineWeb-2's limits for Portuguese; false: left out"
        },
    )
    personal_data: StepSettings = field(
        default_factory=dict,
        metadata={"help": "e-mail, telephone, CPF, CNPJ, NIF, CEP and IP, masked; false: left out"},
    )
    duplicates: StepSettings = field(
        default_factory=dict,
        metadata={
            "help": "exact and near duplicates; `prefer` lists the sources whose documents stay first; false: left out"
        },
    )
    toxicity: StepSettings = field(
        default=False,
        metadata={"help": "settings of the step that drops toxic documents by a classifier; false: left out"},
    )
    decontamination: StepSettings = field(
        default=False,
        metadata={"help": "settings of the step that removes items of evaluation sets, with `sets`: name -> inputs and "
                          "columns; false: left out"},
    )  # fmt: skip
    mixing: dict[str, Any] = field(default_factory=dict, metadata={"help": "weights, tokens and held-out documents"})
    executor: Literal["local", "slurm", "ray"] = field(default="local", metadata={"help": "who runs the shards"})
    workers: int | None = field(default=None, metadata={"help": "shards worked on at once; null: one a core"})
    slurm: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "with executor slurm: partition, time, cpus_per_task, mem_per_cpu_gb, …"},
    )
    shard_rows_megabytes: int = field(
        default=64, metadata={"help": "most of a source that one shard of the work reads"}
    )
    eu_summary: bool = field(
        default=False,
        metadata={"help": "also write training-summary.md: the EU's template for the public summary of training "
                          "content, filled with what the passport knows, the rest marked for you"},
    )  # fmt: skip
    sample: int | None = field(
        default=None,
        metadata={"help": "work on so many documents of each source alone, chosen by a hash, and write no corpus but "
                          "sample.html: what is kept and dropped side by side, with each rule's value and limit"},
    )  # fmt: skip
    max_broken_share: float = field(
        default=0.01, metadata={"help": "share of rows that cannot be read from which a source is refused"}
    )

    def __post_init__(self) -> None:
        """Check the sources, and their weights against each other.

        Raises:
            InputError: no source, one that cannot be, or shares that do not add up to 1.
        """
        ensure(isinstance(self.sources, dict) and self.sources, "sources: is empty. Name at least one source.")
        self.sources = {str(name): values for name, values in self.sources.items()}  # YAML reads 2024 as a number
        ensure(all(map(str.strip, self.sources)), "sources: one has no name. Name each source.")
        self.source_configs: dict[str, SourceConfig] = {
            name: nested(SourceConfig, f"sources.{name}", values) for name, values in self.sources.items()
        }
        for name in STEP_NAMES:
            value = getattr(self, name)
            ensure(
                isinstance(value, dict) or value is False,
                f"{name}={value}: must be a mapping of settings, or false to leave the step out.",
            )
        self.mixing_config: MixingConfig = nested(MixingConfig, "mixing", self.mixing)
        shares = {name: source.share for name, source in self.source_configs.items()}
        given = [share for share in shares.values() if share is not None]
        missing = [name for name, share in shares.items() if share is None]
        ensure(
            not given or not missing,
            f"sources: {', '.join(missing[:3])} have no share, and others have one. Give each source a share, or none.",
        )
        ensure(
            not given or abs(sum(given) - 1) < 1e-6,
            f"sources: the shares add up to {sum(given):.4g}. They must add up to 1.",
        )
        ensure(
            self.mixing_config.total_tokens is None or given,
            f"mixing.total_tokens={self.mixing_config.total_tokens}: needs a share of every source.",
        )
        ensure(self.sample is None or self.sample > 0, f"sample={self.sample}: must be at least 1.")
