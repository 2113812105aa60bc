"""What a user can say about a dataset that is to be published."""

from dataclasses import dataclass, field, fields
from typing import Literal

from ...checks import ensure

Kind = Literal["corpus", "packed", "instructions", "preferences"]


@dataclass
class DatasetOptions:
    """Options of `ttl publish` that concern datasets alone."""

    kind: Literal["auto", "corpus", "packed", "instructions", "preferences"] = field(
        default="auto", metadata={"help": "what the data is; auto: told from run.json or from the columns"}
    )
    license: list[str] = field(
        default_factory=list,
        metadata={"help": "licence of documents that state none: one for all, or SOURCE=LICENCE for each source; "
                          "`unknown` says in public that it is not known"},
    )  # fmt: skip
    packed: str | None = field(
        default=None,
        metadata={"help": "of a corpus: the folder of `ttl pack` whose documents and split it is to have"},
    )
    validation_inputs: list[str] | None = field(
        default=None, metadata={"help": "held-out documents of their own; then nothing else is held out"}
    )
    validation_fraction: float | None = field(
        default=None, metadata={"help": "share held out; null: as the stage that reads such data has it"}
    )
    text_column: str | None = field(default=None, metadata={"help": "of a corpus; null: `text`"})
    metadata_column: str | None = field(default=None, metadata={"help": "of a corpus; null: `metadata`"})
    txt_unit: Literal["file", "line"] | None = field(
        default=None, metadata={"help": "of a corpus: what a document is in a txt file; null: the file"}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "of a corpus: of files that are no parquet, such as cp1252; null: recognised"}
    )
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse",
        metadata={"help": "rows that are no conversation or pair of answers: refuse them all, or drop and count them"},
    )
    shard_megabytes: float = field(
        default=500.0, metadata={"help": "most data in one parquet file, in 10^6 bytes before compression"}
    )
    language: str | None = field(default=None, metadata={"help": "of the card: en, pt or both; null: both"})

    def __post_init__(self) -> None:
        """Refuse values that no dataset can be made with.

        Raises:
            InputError: a shard of no size.
        """
        ensure(self.shard_megabytes > 0, f"shard_megabytes={self.shard_megabytes}: must be more than 0. 500 is usual.")

    def said(self) -> dict[str, object]:
        """Return what differs from the defaults, of the keys above."""
        values = {
            item.name: (getattr(self, item.name), getattr(_DEFAULTS, item.name)) for item in fields(DatasetOptions)
        }
        return {name: value for name, (value, default) in values.items() if value != default}

    def corpus_keys(self) -> dict[str, object]:
        """Return what was said about the reading of a corpus; what was left out is not there."""
        names = ("validation_inputs", "validation_fraction", "text_column", "metadata_column", "txt_unit", "encoding")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_DEFAULTS = DatasetOptions()
