"""Model files: where they are, a folder or a Hub repository at one commit, and whether they can be read safely."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import InputError, MissingFileError, ensure, hub_errors, near_folder, near_name
from .quantised import ensure_readable

# The repositories of the published TeenyTinyLlama models (arXiv 2401.16640).
PUBLISHED_MODELS: dict[str, str] = {
    "160m": "nicholasKluge/TeenyTinyLlama-160m",
    "460m": "nicholasKluge/TeenyTinyLlama-460m",
    "460m-chat": "nicholasKluge/TeenyTinyLlama-460m-Chat",
}

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# An adapter (LoRA, DoRA) and what we record of the model that it belongs to.
ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class ModelSource:
    """Where the files of one model are: a folder, or a Hub repository at a commit (a revision until it is resolved)."""

    name: str
    folder: Path | None = None
    revision: str = "main"

    @property
    def arguments(self) -> dict[str, str]:
        """Return the arguments by which transformers' `from_pretrained` reads these files, at this commit."""
        name = {"pretrained_model_name_or_path": self.name}
        return name if self.folder is not None else {**name, "revision": self.revision}

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that exists, downloaded if need be, or None."""
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        # The cache first: offline, the client cannot tell a file that the repository lacks from one not cached, but the
        # cache remembers those that it was told are lacking.
        unknown = []
        for name in names:
            cached = try_to_load_from_cache(self.name, name, revision=self.revision)
            if isinstance(cached, str):
                return Path(cached)
            if cached is not _CACHED_NO_EXIST:
                unknown.append(name)
        return _download_first(self.name, unknown, self.revision)


def is_local(name: str | None) -> bool:
    """Return whether a model's name is a place on this machine: `outputs/base` has the form of a repository, too."""
    return name is not None and Path(name).expanduser().exists()


def locate(name: str, revision: str | None) -> ModelSource:
    """Return where the model is; for a Hub repository this asks the Hub for the commit of the revision.

    Raises:
        InputError: nothing is there, or it cannot be reached.
    """
    path = Path(name).expanduser()
    if path.exists():
        ensure(
            revision is None,
            f"revision={revision}: name_or_path={name} is a folder on this machine, and only a Hub repository has "
            "revisions. Leave revision out, or give the repository as owner/name.",
        )
        ensure(path.is_dir(), f"name_or_path={name}: is a file. Give the folder that holds config.json.")
        return ModelSource(str(path), folder=path)
    if name.startswith((os.sep, ".", "~")):
        raise MissingFileError(
            f"name_or_path={name}: no such folder.{near_folder(name)} Give a folder made by `ttl pretrain` or "
            "`save_pretrained`."
        )
    repository = PUBLISHED_MODELS.get(name, name)
    if "/" not in repository:
        raise InputError(
            f"name_or_path={name}: neither a folder nor one of the short names {', '.join(PUBLISHED_MODELS)}."
            f"{near_name(name, PUBLISHED_MODELS) or near_folder(name)} A Hub repository is given as owner/name."
        )
    config_path = _download_first(repository, ("config.json", ADAPTER_CONFIG_NAME), revision or "main")
    if config_path is None:
        raise InputError(
            f"name_or_path={repository}: revision {revision or 'main'} holds no config.json, so it is no transformers "
            f"model, and no {ADAPTER_CONFIG_NAME} (a GGUF file alone cannot be loaded). Give the repository of the "
            "model itself."
        )
    # The cache keeps every file under snapshots/<commit>/: the folder's name is the commit that was resolved.
    return ModelSource(repository, revision=config_path.parent.name)


def is_adapter(source: ModelSource) -> bool:
    """Return whether the files are an adapter's (LoRA, DoRA), which needs its base model."""
    return source.find("config.json") is None and source.find(ADAPTER_CONFIG_NAME) is not None


# How the Rust library `tokenizers` ends its errors; the one file that it parses is tokenizer.json.
_OF_TOKENIZERS = re.compile(r"at line \d+ column \d+")


@contextlib.contextmanager
def refusing_damage(field: str, name: str, what: str = "its files") -> Iterator[None]:
    """Turn whatever the libraries raise at damaged files of a model into one refusal.

    This is the one place that catches everything: transformers, tokenizers, peft and safetensors raise dozens of kinds
    of errors at what they did not expect (AttributeError, ZeroDivisionError, RecursionError, panics of Rust), none of
    them says whose file it was, and which one it is changes with their versions.

    Args:
        field: the config key that names the model, for the message.
        name: folder or repository.
        what: is being read.

    Raises:
        InputError: with the libraries' reason.
    """
    try:
        yield
    except (InputError, MemoryError, NotImplementedError):
        raise
    except BaseException as error:
        # Rust's panics derive from BaseException; Ctrl-C and the end of the process do as well, and pass.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        file = _damaged_json(name) or ("tokenizer.json: " if _OF_TOKENIZERS.search(reason) else "")
        raise InputError(
            f"{field}={name}: transformers cannot read {what}: {file}{reason} Download or copy the model again."
        ) from error


def _damaged_json(name: str) -> str:
    """Return the name of the first file of a local folder that is no JSON, and a colon; nothing where all are."""
    for path in sorted(path for path in Path(name).glob("*.json") if path.is_file()):  # nothing is read from a pipe
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError):
            return f"{path.name}: "
    return ""


def read_json_file(field: str, name: str, path: Path) -> dict[str, Any]:
    """Return a JSON file of a model, which must hold one mapping.

    Raises:
        InputError: it is no JSON, or no mapping.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # also bytes that are no UTF-8
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{field}={name}: {path.name} is no JSON ({reason}). Copy it again.") from error
    ensure(isinstance(content, dict), f"{field}={name}: {path.name} holds no mapping. Copy it again.")
    return dict(content)


def check_weights(source: ModelSource) -> None:
    """Refuse a model without weights in safetensors, and an index that names anything but such files beside it.

    Raises:
        InputError: it has none, or its index names a pickle, another folder, or files that are not there.
    """
    for name in ("model.safetensors", ADAPTER_WEIGHTS_NAME):
        if source.find(f"{name}.index.json") and not source.find(name):
            _check_index(source, f"{name}.index.json")
    ensure(
        source.find(*WEIGHT_FILES),
        f"name_or_path={source.name}: holds no weights in safetensors ({' or '.join(WEIGHT_FILES)}). Pickle files such "
        "as pytorch_model.bin are refused because reading them can run code. Use a repository or revision with "
        "safetensors, or convert the weights with `save_pretrained` where you trust them.",
    )


def _check_index(source: ModelSource, index_name: str) -> None:
    """Check which files an index of weights names: transformers reads whatever stands there, a pickle too.

    Raises:
        InputError: see `check_weights`.
    """
    index = source.find(index_name)
    assert index is not None
    weight_map = read_json_file("name_or_path", source.name, index).get("weight_map")
    ensure(
        isinstance(weight_map, dict) and weight_map and all(isinstance(name, str) for name in weight_map.values()),
        f"name_or_path={source.name}: weight_map in {index_name} is no mapping of weights to files. Copy it again.",
    )
    assert isinstance(weight_map, dict)
    for name in sorted(set(weight_map.values())):
        ensure(
            name.endswith(".safetensors") and not set(name) & set("/\\:\0") and not name.startswith("."),
            f"name_or_path={source.name}: {index_name} names {name!r}. Only *.safetensors files beside it are read: "
            "pickle files can run code, and other folders are none of a model's business.",
        )
        ensure(
            source.folder is None or (source.folder / name).is_file(),
            f"name_or_path={source.name}: {index_name} names {name}, which is not there. Download or copy the model "
            "again.",
        )


_MOST_LABELS = 100_000
# What no model of this kind exceeds: above, building the model alone would take minutes or all memory.
_LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 1_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_inner"), 1_000_000),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff"), 10_000_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "head_dim"), 100_000),
    **dict.fromkeys(("vocab_size", "pad_vocab_size_multiple"), 10_000_000),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 1_000_000_000),
    "num_labels": _MOST_LABELS,
}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Settings of generation that transformers takes as they are, until it compares or multiplies with them.
_FLAGS = ("do_sample", "use_cache", "return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
          "output_hidden_states", "remove_invalid_values", "renormalize_logits")  # fmt: skip
_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h",
            "repetition_penalty", "encoder_repetition_penalty", "length_penalty", "no_repeat_ngram_size", "max_length",
            "max_new_tokens", "min_length", "min_new_tokens", "max_time", "num_beams", "num_beam_groups",
            "diversity_penalty", "num_return_sequences", "guidance_scale")  # fmt: skip
# Values that name what computes a model; with a slash or a colon transformers loads code from the Hub for it.
_IMPLEMENTATIONS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal",
                    "_experts_implementation", "experts_implementation", "use_kernels", "kernel_config")  # fmt: skip


def _check_values(field: str, name: str, file: str, config: dict[str, Any]) -> None:
    """Check the values of a model's config on which memory, time and safety depend, also those of its parts.

    Raises:
        InputError: a size that is no positive integer or beyond reason, a token's id that is none, or an
            implementation that is code from the Hub.
    """
    where = f"{field}={name}: {file} has"
    for key, largest in _LARGEST.items():
        value = config.get(key)
        if value is None:
            continue
        is_size = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest
        ensure(is_size, f"{where} {key}={value!r:.80}. It must be an integer from 1 to {largest:,}.")
    for key in _TOKEN_IDS:
        value = config.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        is_id = all(isinstance(item, int) and not isinstance(item, bool) and -1 <= item < 10_000_000 for item in ids)
        ensure(is_id, f"{where} {key}={value!r:.80}. It must be the id of a token, or a list of ids.")
    for key in (*_FLAGS, *_NUMBERS):
        value = config.get(key)
        fits = isinstance(value, bool) if key in _FLAGS else isinstance(value, int | float) and math.isfinite(value)
        ensure(
            value is None or fits,
            f"{where} {key}={value!r:.80}. It must be {'true or false' if key in _FLAGS else 'a number'}.",
        )
    for key in _IMPLEMENTATIONS:
        value = config.get(key)
        texts = [str(part) for part in value.values()] if isinstance(value, dict) else [str(value)]
        ensure(
            value in (None, False) or (key != "use_kernels" and not any(set(text) & set("/:") for text in texts)),
            f"{where} {key}={value!r:.80}: code from the Hub would compute the model, and such code is never run. Take "
            "the line out of the file.",
        )
    labels = config.get("id2label")
    ensure(
        not isinstance(labels, dict | list) or len(labels) <= _MOST_LABELS,
        f"{where} an id2label of more than {_MOST_LABELS:,} entries. Take it out of the file.",
    )
    ensure(
        config.get("transformers_weights") is None,
        f"{where} transformers_weights={config.get('transformers_weights')!r:.80}: weights are read from "
        f"{' or '.join(WEIGHT_FILES)} alone. Take the line out of the file, and give the weights that name.",
    )
    for part in config.values():
        if isinstance(part, dict):
            _check_values(field, name, file, part)


def check_config(source: ModelSource, classifier: bool = False) -> None:
    """Refuse a model without config.json, or one that transformers knows only by running the repository's code.

    Raises:
        InputError: it is one of them, its config.json is damaged or names sizes beyond reason, or its weights are
            quantised and what reads them is not installed.
    """
    config_path = source.find("config.json")
    if config_path is None:
        checkpoints = [path.parent for path in source.folder.glob("checkpoint-*/config.json")] if source.folder else []
        newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
        hint = f" Its newest checkpoint is {newest}." if newest else ""
        raise MissingFileError(
            f"name_or_path={source.name}: holds no config.json. Give the folder of a finished run or of a checkpoint."
            f"{hint}"
        )
    from transformers.models.auto import modeling_auto

    known, what, such_as = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "causal language model", "llama"
    if classifier:
        known, what = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "classifier of texts"
        such_as = "llama or bert"
    config = read_json_file("name_or_path", source.name, config_path)
    model_type = config.get("model_type")
    ensure(
        isinstance(model_type, str) and model_type in known,
        f"name_or_path={source.name}: model_type={model_type} in config.json is no {what} of transformers, and code "
        f"that comes with a repository is never run. Use a model of a built-in type such as {such_as}.",
    )
    named = config.get("architectures")  # with tied embeddings all weights of a classifier fit a model that writes
    ensure(
        classifier or named != [modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(str(model_type))],
        f"name_or_path={source.name}: is a classifier of texts ({named}), which writes none. Give the model itself.",
    )
    _check_values("name_or_path", source.name, "config.json", config)
    if generation := source.find("generation_config.json"):
        settings = read_json_file("name_or_path", source.name, generation)
        _check_values("name_or_path", source.name, "generation_config.json", settings)
    ensure_readable(config)
    _check_layers(source, config)


def _check_layers(source: ModelSource, config: dict[str, Any]) -> None:
    """Refuse a config that asks for more than the weights of a folder can hold, before a model of that size is built.

    Raises:
        InputError: more layers than there are weights, or a size beyond all weights together.
    """
    if source.folder is None:  # nothing but the config is here yet
        return
    files = sorted(path for path in source.folder.glob("*.safetensors") if path.is_file())  # no pipe, no folder
    if not files:
        return
    from safetensors import SafetensorError, safe_open

    weights, numbers = 0, 0
    try:
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  # it is no mapping
                    count = 1
                    for size in opened.get_slice(name).get_shape():
                        count *= size
                    weights, numbers = weights + 1, numbers + count
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"name_or_path={source.name}: transformers cannot read its files: {' '.join(str(error).split())} Download "
            "or copy the model again."
        ) from error
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    vocab_size, hidden_size = config.get("vocab_size") or 0, config.get("hidden_size") or config.get("n_embd") or 0
    inner_size = config.get("intermediate_size") or 0
    ensure(
        layers <= weights and max(vocab_size, inner_size) * hidden_size <= max(numbers, 1),
        f"name_or_path={source.name}: config.json asks for {layers:,} layers and {vocab_size:,} x {hidden_size:,} "
        f"embeddings (intermediate_size {inner_size:,}), more than its files hold ({weights:,} weights of {numbers:,} "
        "numbers). Download or copy the model again.",
    )


def _download_first(repository: str, names: Iterable[str], revision: str) -> Path | None:
    """Return the first of a repository's files that is there, see `_download`.

    Without a network the client cannot tell a file that is not there from one that is not cached, so the later names
    are tried as well before that is said.
    """
    refused: InputError | None = None
    for name in names:
        try:
            if path := _download(repository, name, revision):
                return path
        except InputError as error:
            refused = refused or error
    if refused:
        raise refused
    return None


def _download(repository: str, filename: str, revision: str) -> Path | None:
    """Return the cached or downloaded path of a repository's file, or None when that revision has no such file.

    Raises:
        InputError: the repository or revision does not exist, access is refused, or the Hub cannot be reached and
            the file is not cached.
    """
    from huggingface_hub import constants, get_token, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except HFValidationError as error:
        message = f"is neither a folder here nor a Hub repository id.{near_folder(repository)} Write owner/name."
        raise InputError(f"name_or_path={repository}: {message}") from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"revision={revision}: {repository} has no branch, tag or commit of that name. The list is at "
            f"{constants.ENDPOINT}/{repository}/tree/main; leave revision out for the final model."
        ) from error
    except GatedRepoError as error:
        raise InputError(
            f"name_or_path={repository}: access to this repository has to be granted (HTTP "
            f"{error.response.status_code}). Ask for it at {constants.ENDPOINT}/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except hub_errors() as error:
        # Several failures come as "not in the cache", with the Hub's answer as the cause.
        answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
        status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
        # To a stranger the Hub answers 401 for a missing repository as well as for a private one.
        is_hidden = isinstance(error, RepositoryNotFoundError) or (status == 401 and get_token() is None)
        raise InputError(_hub_refusal(repository, filename, status, is_hidden, constants.ENDPOINT)) from error


def _hub_refusal(repository: str, filename: str, status: int | None, is_hidden: bool, endpoint: str) -> str:
    """Return the message for a file that the Hub did not give, by HTTP status (None: no answer came)."""
    if is_hidden:
        return (
            f"name_or_path={repository}: no such folder here, and no such repository on {endpoint} that you may read "
            f"(HTTP {status}).{near_folder(repository)} Check the spelling; if it is private, log in with "
            "`hf auth login` or set HF_TOKEN to a "
            "token that can read it."
        )
    if status in (401, 403):
        return (
            f"name_or_path={repository}: {endpoint} refuses your token (HTTP {status}). Log in again with "
            "`hf auth login`, or set HF_TOKEN to a valid token that can read this repository."
        )
    reason = "no Hub can be reached there (or HF_HUB_OFFLINE is set)" if status is None else f"it answers HTTP {status}"
    return (
        f"name_or_path={repository}: no such folder here.{near_folder(repository)} As a Hub repository: "
        f"{filename} is not in the local cache, and {endpoint} cannot give it: {reason}. "
        f"Run `hf download {repository}` once while online, or give a folder."
    )
