"""What folders of tokenized examples share, conversations or preferences: reading rows, refusing bad ones, writing.

A folder holds `train.parquet` and `validation.parquet`, and `run.json`, written last.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_folder
from ..emissions import EMISSIONS_NAME
from ..ledger import LEDGER_NAME
from ..manifest import MANIFEST_NAME, read_manifest, sha256_file, sha256_json, write_manifest
from .input_files import SourceFile, hub_datasets
from .instructions import Counts
from .readers import read_records
from .sources import Split, default_source

if TYPE_CHECKING:
    import pyarrow

SPLITS: tuple[Split, Split] = ("train", "validation")


def records(key: str, files: list[SourceFile]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (place, default source, row) of each row of the files.

    Raises:
        InputError: a file cannot be read; it names the config key.
    """
    for file in files:
        source = default_source(file.path)
        for number, record in enumerate(read_records(key, file.path), start=1):
            yield f"{file.name}:{number}", source, record


def reasons(counts: Counts) -> str:
    """Return why rows were left out, the most frequent reason first, each with its first row."""
    found = counts.dropped.most_common()
    texts = [f"{number:,} x {reason}, first {counts.first_dropped[reason]}" for reason, number in found]
    return "; ".join(texts) or "no row at all"


def print_left_out(manifest: dict[str, Any]) -> None:
    """Print what a folder of examples leaves out: rows by reason, and columns that no turn was made of."""
    for reason, number in manifest["dropped"].items():
        print(f"left out   {number:,} x {reason} (first: {manifest['first_dropped'][reason]})")
    if unused := manifest.get("unused_columns"):  # manifests of older versions have none
        names = ", ".join(f"{name} ({number:,} rows)" for name, number in unused.items())
        print(f"not used   columns {names}")


def refuse_bad_rows(config: Any, counts: Counts, what: str, harmless: tuple[str, ...]) -> None:
    """Refuse inputs with rows that were left out for more than the harmless reasons, unless they are to be dropped.

    Raises:
        InputError: there are some; it counts them by reason.
    """
    bad = {reason: number for reason, number in counts.dropped.items() if reason not in harmless}
    ensure(
        not bad or config.invalid_rows == "drop",
        f"inputs={', '.join(config.inputs)}: {sum(bad.values()):,} rows {what} ({reasons(counts)}). Mend them, or set "
        "invalid_rows: drop to leave them out.",
    )


def examples_are_done(output: Path, stage: str, plan: dict[str, Any]) -> bool:
    """Return whether a folder already holds the examples of a plan.

    Raises:
        InputError: it is a file, or holds something else.
    """
    ensure_folder("output_dir", output)
    if (output / MANIFEST_NAME).exists():
        found = read_manifest("output_dir", output, stage, "Choose another folder.")
        ensure(
            found["plan_sha256"] == sha256_json(plan),
            f"output_dir={output}: holds {stage} of other inputs or settings. Choose another folder.",
        )
        return True
    # A train.parquet without run.json may be the user's.
    own = {*(f"{split}.parquet.partial" for split in SPLITS), EMISSIONS_NAME, LEDGER_NAME}
    others = sorted({path.name for path in output.iterdir()} - own) if output.is_dir() else []
    ensure(not others, f"output_dir={output}: is not empty ({', '.join(others[:3])}). Choose an empty or new folder.")
    return False


def describe_examples(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a tuning's manifest says of its prepared examples, whatever their kind, and where they come from."""
    return {
        "inputs": manifest["plan"]["inputs"],
        "hub_datasets": hub_datasets(manifest["plan"]["inputs"]),
        "tokenizer_sha256": manifest["plan"]["tokenizer_sha256"],
        "packed_sha256": manifest["hashes"]["train.parquet"],
        "sources": manifest["train"]["sources"],
        "train_tokens": manifest["train"]["tokens"],
        "dropped": manifest["dropped"],
    }


def messages_type(weighted: bool = False) -> "pyarrow.DataType":
    """Return the parquet type of a list of turns; `weighted`: some have a weight of 0, the others null."""
    import pyarrow

    weight = [("weight", pyarrow.int8())] if weighted else []
    return pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), *weight]))


def write_examples(
    output: Path,
    stage: str,
    schema: "pyarrow.Schema",
    rows: dict[str, list[dict[str, Any]]],
    plan: dict[str, Any],
    summary: dict[str, Any],
    counts: Counts,
) -> None:
    """Write both splits and then the manifest, with the plan, a summary of each split and what was left out."""
    import pyarrow
    import pyarrow.parquet

    output.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table = pyarrow.Table.from_pylist(rows[split], schema)
        pyarrow.parquet.write_table(table, output / f"{split}.parquet.partial")
    for split in SPLITS:
        (output / f"{split}.parquet.partial").replace(output / f"{split}.parquet")
    content = {
        "plan_sha256": sha256_json(plan),
        "plan": plan,
        **summary,
        "dropped": dict(counts.dropped),
        "first_dropped": counts.first_dropped,
        "unused_columns": dict(counts.unused),
        "hashes": {f"{split}.parquet": sha256_file(output / f"{split}.parquet") for split in SPLITS},
    }
    write_manifest(output, stage, content)
