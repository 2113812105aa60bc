"""What every kind of dataset comes down to: rows with a source and a licence, and the columns they are written in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...data.sources import Split
from .options import Kind

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Row:
    """One row before it is written.

    Attributes:
        split: train or validation.
        source: that it counts under.
        license: as the data states it; empty when it does not.
        value: what the kind's `columns` writes.
        texts: what bytes and words are counted of.
    """

    split: Split
    source: str
    license: str
    value: Any
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """A dataset to be published, before it is counted and written.

    Attributes:
        kind: of the data.
        schema: of the parquet files.
        rows: yields all rows in a fixed order, again at each call.
        columns: returns the arrays of some rows, given their licences.
        inputs: sha256 by name of what is read.
        identity: what says, at the next publication, that it is the same dataset in a newer state.
        facts: what the card tells of this kind, from manifests and settings.
        row_bytes: of each row where all are alike and need not be counted (packed rows), else None.
    """

    kind: Kind
    schema: "pyarrow.Schema"
    rows: Callable[[], Iterator[Row]]
    columns: "Callable[[list[Row], list[str]], list[pyarrow.Array]]"
    inputs: dict[str, str]
    identity: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    row_bytes: int | None = None


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
