"""The tokenizer and the chat template in a GGUF file and beside it for Ollama, and whether llama.cpp gives its ids.

It is llama.cpp's `llama` (SentencePiece's BPE: any neighbours whose joined text is an entry, the highest score first)
for a vocabulary with byte tokens, and its `gpt2` for a byte-level BPE. A tokenizer that is not of `ttl tokenizer` is
tried in llama.cpp on `trial_lines`: the first reading that gives its ids is written, or none is.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.generation import Sampling
from ..chat.template import TEMPLATE_PATH
from ..checks import InputError, ensure, ensure_packages
from ..disk import scratch_folder
from ..tokenizer.files import BYTE_TOKENS, EOS_TOKEN, sentencepiece_model
from .llama_cpp import opened

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Kinds of entries in a GGUF file (`gguf.TokenType`).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# How llama.cpp cuts texts before a byte-level BPE (`llama_vocab::impl::load`): the usual ones among small models.
_PRE_TOKENIZERS = ("gpt-2", "llama-bpe", "qwen2", "smollm", "default", "tekken", "gpt-4o", "deepseek-llm", "olmo")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file holds it.

    Attributes:
        model: `llama` or `gpt2`.
        pre: how texts are cut before a byte-level BPE.
        pieces: the entries by id.
        kinds: of the entries.
        scores: of the entries, for `llama`.
        merges: of a byte-level BPE.
        space_prefix: whether a space is put before a text.
    """

    model: str
    pre: str
    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    space_prefix: bool = False


def add_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary, rows: int, metadata: dict[str, Any]) -> None:
    """Write the tokenizer; embeddings beyond its entries get names of no text, as llama.cpp wants one for each."""
    spare = [f"[PAD{number}]" for number in range(len(vocabulary.pieces), rows)]
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list([*vocabulary.pieces, *spare])
    writer.add_token_types([*vocabulary.kinds, *[UNUSED] * len(spare)])
    if vocabulary.scores:
        lowest = min(vocabulary.scores)
        writer.add_token_scores([*vocabulary.scores, *(lowest - 1 - place for place in range(len(spare)))])
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    for role in ("bos", "eos", "eot", "unk", "pad"):
        if metadata.get(role) is not None:
            getattr(writer, f"add_{role}_token_id")(metadata[role])
    writer.add_add_bos_token(bool(metadata.get("add_bos")))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    if metadata.get("chat_template"):
        writer.add_chat_template(portable_template(metadata["chat_template"]))


def portable_template(template: str) -> str:
    """Return a chat template without the tag `generation`, which marks answers for training and no other program knows.

    A condition that always holds takes its place, so that white space is cut as before.
    """
    opened_tag = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened_tag)


def read_vocabulary(name: str, tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """Return a tokenizer in the form of a GGUF file.

    Raises:
        InputError: it is no BPE, or llama.cpp gives other ids in every reading that is known here.
    """
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    content = json.loads(backend.to_str())
    model = content["model"]
    ensure(
        model.get("type") == "BPE",
        f"model_name_or_path={name}: its tokenizer is a {model.get('type')}; only a BPE is written as GGUF. "
        "llama.cpp's convert_hf_to_gguf.py may know it.",
    )
    pieces, kinds = _entries(content)
    ours = Vocabulary("llama", "default", pieces, kinds, tuple(-float(index) for index in range(len(pieces))))
    if sentencepiece_model(content) is not None:
        return ours
    ensure_packages("gguf", "llama_cpp")
    for tried in _readings(ours, content):
        if not differing_lines(tried, tokenizer):
            return tried
    line = min(differing_lines(next(_readings(ours, content)), tokenizer), key=len)
    raise InputError(
        f"model_name_or_path={name}: llama.cpp gives other ids than its tokenizer, for example of {line!r}. Such a "
        "file would answer worse and not say so, so none is written. llama.cpp's convert_hf_to_gguf.py may know it."
    )


def _entries(content: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the entries of a `tokenizer.json` by id, and their kinds; a gap in the ids gets an unused entry."""
    added = {token["id"]: token for token in content["added_tokens"]}
    numbers = {index: piece for piece, index in content["model"]["vocab"].items()}
    numbers |= {index: token["content"] for index, token in added.items()}
    unknown, pieces, kinds = content["model"].get("unk_token"), [], []
    bytes_tokens = set(BYTE_TOKENS) if content["model"].get("byte_fallback") else set()
    for index in range(max(numbers) + 1):
        piece = numbers.get(index)
        kind = NORMAL
        if piece is None:
            piece, kind = f"[PAD{index}]", UNUSED
        elif piece in bytes_tokens:
            kind = BYTE
        elif piece == unknown:
            kind = UNKNOWN
        elif index in added:
            kind = CONTROL if added[index]["special"] else USER_DEFINED
        pieces.append(piece)
        kinds.append(kind)
    return tuple(pieces), tuple(kinds)


def _readings(plain: Vocabulary, content: dict[str, Any]) -> Iterator[Vocabulary]:
    """Yield the ways in which llama.cpp could read a tokenizer, the likeliest first."""
    model = content["model"]
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    if "ByteLevel" in json.dumps(content["pre_tokenizer"]):
        yield from (Vocabulary("gpt2", pre, plain.pieces, plain.kinds, merges=merges) for pre in _PRE_TOKENIZERS)
        return
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), -float(rank))
    by_rank = tuple(ranks.get(piece, -float(len(merges) + place)) for place, piece in enumerate(plain.pieces))
    for scores in (plain.scores, by_rank):
        for space_prefix in (True, False):
            yield replace(plain, scores=scores, space_prefix=space_prefix)


@cache
def trial_lines() -> tuple[str, ...]:
    """Return lines on which two tokenizers are compared: the embedded stories, and what tokenizers stumble over."""
    from ..data.sample import sample_documents

    texts = [row["text"] for row in sample_documents("validation")]
    stories = [line for text in texts for line in text.splitlines() if line.strip()][:300]
    hard = [
        "São 1.234.567,89 euros.", "R$ 10,50 (dez reais)", "2026-11-30T12:00:00Z", "  dois  espaços", " começa aqui",
        "acaba aqui ", "tab\taqui", "linha\nnova\n\nvazia", "\n", "ação, avô, avó, pinguim, cônsul", "AÇÃO E REAÇÃO",
        "guarda-chuva d'água", "def f(x):\n    return x + 1", "<b>html</b> & co.", "https://exemplo.pt/a?b=c#d",
        "🙂👍🏽", "日本語とPortuguês", "é" * 20, "a" * 40, "0" * 13, "…—“”‘’«»", "don't we'll I'm", "{}[]()\\|",
        "de que se não para os que já a uma", "Lisboa,Porto;Braga:Faro", "fim.Início", "X₂ + y² = ½", "Ñandú Œuvre ß",
    ]  # fmt: skip
    return tuple(unicodedata.normalize("NFC", line) for line in (*stories, *hard))


def differing_lines(vocabulary: Vocabulary, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the lines of `trial_lines` of which llama.cpp with a vocabulary gives other ids than the tokenizer."""
    import gguf

    with scratch_folder() as folder:
        path = folder / "vocabulary.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        add_vocabulary(writer, vocabulary, len(vocabulary.pieces), {})
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return different_ids(path, tokenizer)


def different_ids(path: Path, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the lines of `trial_lines` of which llama.cpp gives other ids with a GGUF file than the tokenizer."""
    with opened(path, vocabulary_only=True) as read:
        return [
            line
            for line in trial_lines()
            if read.tokenize(line) != tokenizer(line, add_special_tokens=False)["input_ids"]
        ]


# Files that Ollama reads: the first of a folder, the others of a repository on the Hub
# (`ollama run hf.co/owner/name`; huggingface.co/docs/hub/ollama, "Custom Chat Template and Parameters").
MODELFILE_NAME, OLLAMA_TEMPLATE_NAME, OLLAMA_PARAMETERS_NAME = "Modelfile", "template", "params"
# Our chat template in Go's language. Ollama fills it in once for each turn, a system text with the first one, cuts the
# last one off where the answer stands, and puts the start token in front by itself (github.com/ollama/ollama, docs).
_OLLAMA_CHAT = """{{ if .Prompt }}<instruction>{{ if .System }}{{ .System }}

{{ end }}{{ .Prompt }}</instruction>{{ end }}{{ .Response }}</s>"""


def ollama_files(path: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return the files for Ollama by their names.

    Args:
        path: of the GGUF file beside them.
        model: whose context is named.
        tokenizer: with our chat template, another, or none: Ollama has templates of its own for some others.
    """
    sampling = Sampling()
    parameters: dict[str, Any] = {
        "num_ctx": model.config.max_position_embeddings, "temperature": sampling.temperature, "top_k": sampling.top_k,
        "top_p": sampling.top_p, "repeat_penalty": sampling.repetition_penalty,
    }  # fmt: skip
    template = None if tokenizer.chat_template else "{{ .Prompt }}"
    if tokenizer.chat_template == TEMPLATE_PATH.read_text(encoding="utf-8"):
        template, parameters["stop"] = _OLLAMA_CHAT, [EOS_TOKEN]
    lines = [f"FROM ./{path}", *([f'TEMPLATE """{template}"""'] if template else [])]
    for name, value in parameters.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {json.dumps(item)}" for item in values]
    files = {MODELFILE_NAME: "\n".join(lines) + "\n", OLLAMA_PARAMETERS_NAME: json.dumps(parameters, indent=1) + "\n"}
    return {**files, OLLAMA_TEMPLATE_NAME: template} if template else files
