"""Held-out documents for a model that is loaded from disk: a packed folder, or any text files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import ensure
from ..data.input_files import SAMPLE
from ..data.journal import DOCUMENT_DTYPE
from ..data.packed import DOCUMENTS_NAME, VALIDATION_NAME, check_packed, load_packed
from ..data.sources import Corpus, CorpusConfig, parse_metadata
from ..manifest import MANIFEST_NAME
from ..tokenizer import encode_texts, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class HeldOutText:
    """Documents as texts and as tokens `<s> … </s>`, in the form of a packed folder's held-out part.

    Attributes:
        texts: one a document.
        validation: (tokens,) of all documents, one after another.
        documents: offset, tokens, bytes and source of each (`DOCUMENT_DTYPE`).
        source_names: of `documents["source"]`.
    """

    texts: list[str]
    validation: NDArray[Any]
    documents: NDArray[Any]
    source_names: list[str]


def load_held_out(inputs: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> HeldOutText:
    """Return the held-out documents that inputs stand for, as tokens of a model.

    Args:
        inputs: one packed folder, or files, folders, globs and `sample`, whose every document is taken (of `sample`:
            its held-out stories).
        tokenizer: the model's.

    Raises:
        InputError: nothing is there, there is no document, or a packed folder of another tokenizer.
    """
    if len(inputs) == 1 and (Path(inputs[0]) / MANIFEST_NAME).is_file():
        return _from_packed(inputs[0], tokenizer)
    texts, sources = _read_texts(list(inputs))
    ensure(texts, f"held_out={', '.join(inputs)}: holds no document with text.")
    return _tokenized(texts, sources, tokenizer)


def _from_packed(folder: str, tokenizer: "PreTrainedTokenizerBase") -> HeldOutText:
    packed = load_packed(folder, "held_out")
    ensure(
        packed.manifest["tokenizer_sha256"] == tokenizer_fingerprint(tokenizer),
        f"held_out={folder}: was packed with another tokenizer than the model's. Give the held-out texts themselves.",
    )
    ensure(
        len(packed.documents),
        f"held_out={folder}: no document is held out there. Give texts, or pack with validation_fraction.",
    )
    check_packed(packed, "held_out", names=(VALIDATION_NAME, DOCUMENTS_NAME))
    texts = []
    for start, count in zip(packed.documents["offset"], packed.documents["num_tokens"], strict=True):
        ids = packed.validation[start + 1 : start + count - 1].tolist()
        texts.append(str(tokenizer.decode(ids, skip_special_tokens=False)))
    return HeldOutText(texts, packed.validation, packed.documents, packed.source_names)


def _read_texts(inputs: list[str]) -> tuple[list[str], list[str]]:
    texts, sources = [], []
    files = [text for text in inputs if text != SAMPLE]
    if files:
        # A fraction of nought calls every document `train`; all of them are meant here.
        for _, document in Corpus(CorpusConfig(inputs=files, validation_fraction=0.0)).documents():
            texts.append(document.text)
            sources.append(document.source)
    if SAMPLE in inputs:
        from ..data.sample import sample_documents

        for row in sample_documents("validation"):
            texts.append(row["text"])
            sources.append(parse_metadata(row["metadata"], SAMPLE)[0])
    return texts, sources


def _tokenized(texts: list[str], sources: list[str], tokenizer: "PreTrainedTokenizerBase") -> HeldOutText:
    end = tokenizer.eos_token_id
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    ensure(start is not None, "held_out: the model's tokenizer has no start and no end token to begin a document with.")
    rows = [[start, *ids, start if end is None else end] for ids in encode_texts(tokenizer, texts)]
    names = {name: place for place, name in enumerate(dict.fromkeys(sources))}
    documents = np.zeros(len(texts), dtype=DOCUMENT_DTYPE)
    documents["num_tokens"] = [len(row) for row in rows]
    documents["offset"] = np.concatenate([[0], np.cumsum(documents["num_tokens"])[:-1]])
    documents["num_bytes"] = [len(text.encode()) for text in texts]
    documents["source"] = [names[source] for source in sources]
    return HeldOutText(texts, np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]), documents, list(names))
