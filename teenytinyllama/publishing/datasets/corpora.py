"""A corpus as a dataset: `text`, and `metadata` with source and licence, split by document as `ttl pack` splits."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checks import ensure
from ...data.packed import packed_manifest
from ...data.sources import Corpus, CorpusConfig
from .content import Content, Row
from .options import DatasetOptions

if TYPE_CHECKING:
    import pyarrow

_CORPUS_KEYS = ("validation_inputs", "validation_fraction", "text_column", "metadata_column", "txt_unit", "encoding")


def corpus_content(inputs: list[str], settings: dict[str, Any], options: DatasetOptions) -> Content:
    """Return the content of a corpus.

    Args:
        inputs: see `data.sources`.
        settings: keys of a packing config, where the inputs come from one.
        options: of the user; they go before the settings.

    Raises:
        InputError: see `Corpus`; also a packed folder that was made of other files, or one beside settings of its own.
    """
    packing = None
    settings = {name: settings[name] for name in _CORPUS_KEYS if name in settings} | options.corpus_keys()
    if options.packed is not None:
        ensure(
            not options.corpus_keys(),
            f"packed={options.packed}: decides the split and the columns already. Leave out "
            f"{', '.join(options.corpus_keys())}.",
        )
        packing = packed_manifest(options.packed)
        settings = {name: packing["config"][name] for name in _CORPUS_KEYS if name in packing["config"]}
    config = CorpusConfig(inputs=inputs, **settings)
    corpus = Corpus(config)
    hashes = corpus.fingerprint()
    if packing is not None:
        ensure(
            sorted(hashes.values()) == sorted(packing["plan"]["inputs"].values()),
            f"packed={options.packed}: was made of other files than these. Give the inputs of its run.json "
            f"({', '.join(packing['config']['inputs'])}), unchanged, or leave --packed out.",
        )
    facts = {
        "packing": packing,
        # None: what is held out was set apart beforehand, as that of the sample always is.
        "validation_fraction": config.validation_fraction if corpus.files and not config.validation_inputs else None,
    }
    names = sorted({Path(text).name if not text.startswith("hf://") else text for text in inputs})
    return Content("corpus", _schema(), lambda: _rows(corpus), _columns, hashes, {"inputs": names}, facts)


def _schema() -> "pyarrow.Schema":
    import pyarrow

    origin = pyarrow.struct([("source", pyarrow.string()), ("license", pyarrow.string())])
    return pyarrow.schema([("text", pyarrow.string()), ("metadata", origin)])


def _rows(corpus: Corpus) -> Iterator[Row]:
    for split, document in corpus.documents():
        yield Row(split, document.source, document.license, document.text, (document.text,))


def _columns(rows: list[Row], licenses: list[str]) -> "list[pyarrow.Array]":
    import pyarrow

    sources = pyarrow.array([row.source for row in rows], pyarrow.string())
    origin = [sources, pyarrow.array(licenses, pyarrow.string())]
    return [
        pyarrow.array([row.value for row in rows], pyarrow.string()),
        pyarrow.StructArray.from_arrays(origin, names=["source", "license"]),
    ]
