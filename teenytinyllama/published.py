"""Load a model and its tokenizer by short name, Hub repository or folder, without ever running a repository's code.

A Hub revision is resolved once, with config.json, and everything else is read at that commit, so model and tokenizer
cannot come from two versions. Weights are read from safetensors only: pickle files can run code when they are read.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError, MissingFileError, ensure, ensure_packages, near_name
from .hub_client import hub_errors
from .manifest import sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
BASE_RECORD_NAME = "base_model.json"


@dataclass(frozen=True)
class _Source:
    """Where the files of one model are: a folder, or a Hub repository at a commit (a revision until it is resolved)."""

    name: str
    folder: Path | None = None
    revision: str = "main"

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that exists, downloaded if need be, or None."""
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub import try_to_load_from_cache

        # The cache first: offline, the Hub client cannot tell a file that the repository lacks from one not cached.
        for name in names:
            cached = try_to_load_from_cache(self.name, name, revision=self.revision)
            if isinstance(cached, str):
                return Path(cached)
        downloads = (_download(self.name, name, self.revision) for name in names)
        return next((path for path in downloads if path is not None), None)


def from_pretrained(
    name_or_path: str | Path, revision: str | None = None, base_model: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return a causal language model, in evaluation mode and the dtype it was saved in, and its tokenizer.

    A LoRA adapter comes back merged into its base model.

    Args:
        name_or_path: a folder (a run, a checkpoint, an adapter), a Hub repository `owner/name`, or a short name of
            `PUBLISHED_MODELS`. A folder that exists wins over a name.
        revision: branch, tag or commit of a Hub repository; `main` by default.
        base_model: for an adapter: where its base model is, if it is not where the adapter says.

    Raises:
        InputError: the name is unknown, the folder or repository cannot be read or lacks config.json, safetensors
            weights or a tokenizer, the model needs code of its own, or a revision is given for a folder; an adapter of
            another base model; a base model for what is no adapter.
    """
    source = _locate(str(name_or_path), revision)
    if _is_adapter(source):
        return _load_adapter(source, base_model)
    ensure(base_model is None, f"base_model={base_model}: {name_or_path} is a whole model, no adapter. Leave it out.")
    _check_config(source)
    _check_weights(source)
    ensure(
        source.find(*TOKENIZER_FILES),
        f"name_or_path={source.name}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}). Save one beside the model "
        "with `tokenizer.save_pretrained`.",
    )
    # Only now, so that a refusal does not wait for torch.
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"revision": source.revision} if source.folder is None else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, **place)
        model = AutoModelForCausalLM.from_pretrained(
            source.name, trust_remote_code=False, use_safetensors=True, **place
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"name_or_path={source.name}: transformers cannot read its files: {error} Download or copy the model again."
        ) from error
    return model, tokenizer


def load_classifier(
    name_or_path: str, revision: str | None, config: "PreTrainedConfig"
) -> "tuple[PreTrainedModel, list[str]]":
    """Return a model with a classification head by `config`, in float32, and which of its weights are new.

    Weights that the model does not have, the head above all, are drawn: seed the global randomness first.

    Args:
        name_or_path: see `from_pretrained`.
        revision: branch, tag or commit of a Hub repository.
        config: of this model, from `load_config`, with the labels.

    Raises:
        InputError: see `from_pretrained`.
    """
    source = _locate(name_or_path, revision)
    _check_weights(source)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    place = {"revision": source.revision} if source.folder is None else {}
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            source.name, config=config, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, **place,
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"name_or_path={source.name}: transformers cannot read its files: {error} Download or copy the model again."
        ) from error
    return model, sorted(loaded["missing_keys"])


def weights_identity(name_or_path: str, revision: str | None = None) -> str:
    """Return what tells these weights from others: a Hub commit, or a hash of the files in a folder.

    Raises:
        InputError: see `from_pretrained`.
    """
    source = _locate(name_or_path, revision)
    if source.folder is None:
        return source.revision
    return sha256_json({path.name: sha256_file(path) for path in sorted(source.folder.glob("*.safetensors"))})


def _check_weights(source: _Source) -> None:
    ensure(
        source.find(*WEIGHT_FILES),
        f"name_or_path={source.name}: holds no weights in safetensors ({' or '.join(WEIGHT_FILES)}). Pickle files such "
        "as pytorch_model.bin are refused because reading them can run code. Use a repository or revision with "
        "safetensors, or convert the weights with `save_pretrained` where you trust them.",
    )


def _locate(name: str, revision: str | None) -> _Source:
    """Return where the model is; for a Hub repository this asks the Hub for the commit of the revision."""
    path = Path(name).expanduser()
    if path.exists():
        ensure(
            revision is None,
            f"revision={revision}: name_or_path={name} is a folder on this machine, and only a Hub repository has "
            "revisions. Leave revision out, or give the repository as owner/name.",
        )
        ensure(path.is_dir(), f"name_or_path={name}: is a file. Give the folder that holds config.json.")
        return _Source(str(path), folder=path)
    if name.startswith((os.sep, ".", "~")):
        raise MissingFileError(
            f"name_or_path={name}: no such folder. Give a folder made by `ttl pretrain` or `save_pretrained`."
        )
    repository = PUBLISHED_MODELS.get(name, name)
    if "/" not in repository:
        raise InputError(
            f"name_or_path={name}: neither a folder nor one of the short names {', '.join(PUBLISHED_MODELS)}."
            f"{near_name(name, PUBLISHED_MODELS)} A Hub repository is given as owner/name."
        )
    config_path = _download(repository, "config.json", revision or "main") or _download(
        repository, ADAPTER_CONFIG_NAME, revision or "main"
    )
    if config_path is None:
        raise InputError(
            f"name_or_path={repository}: revision {revision or 'main'} holds no config.json, so it is no transformers "
            f"model, and no {ADAPTER_CONFIG_NAME} (a GGUF file alone cannot be loaded). Give the repository of the "
            "model itself."
        )
    # The cache keeps every file under snapshots/<commit>/: the folder's name is the commit that was resolved.
    return _Source(repository, revision=config_path.parent.name)


def _is_adapter(source: _Source) -> bool:
    return source.find("config.json") is None and source.find(ADAPTER_CONFIG_NAME) is not None


def _load_adapter(source: _Source, base_model: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return an adapter merged into its base model, and its tokenizer."""
    ensure_packages("sft", "peft")
    found = source.find(ADAPTER_CONFIG_NAME)
    assert found is not None
    try:
        adapter: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        recorded = str(adapter["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"name_or_path={source.name}: {ADAPTER_CONFIG_NAME} is damaged ({error!r}).") from error
    ensure(
        source.find(ADAPTER_WEIGHTS_NAME),
        f"name_or_path={source.name}: holds no {ADAPTER_WEIGHTS_NAME}. Pickle files such as adapter_model.bin are "
        "refused because reading them can run code.",
    )
    name = base_model or recorded
    try:
        model, tokenizer = from_pretrained(name, None if base_model else adapter.get("revision"))
    except InputError as error:
        where = f"base_model={name}" if base_model else f"name_or_path={source.name}: its base model is {name}"
        raise InputError(f"{where}: {error} Give its place with --base_model.") from error
    record = source.find(BASE_RECORD_NAME)
    expected = json.loads(record.read_text(encoding="utf-8")) if record else {}
    other = f"name_or_path={source.name}: is an adapter of another base model than {name}"
    ensure(
        expected.get("fingerprint") in (None, base_fingerprint(model)),
        f"{other}: it was trained on {expected.get('base_model')}. Give that one with --base_model.",
    )
    from peft import PeftModel

    if source.find(*TOKENIZER_FILES):
        tokenizer = load_tokenizer("name_or_path", source.name, None if source.folder else source.revision)
    resize_embeddings(model, tokenizer)
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(found.parent))
    except (RuntimeError, ValueError) as error:  # sizes or names of layers that do not fit
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{other} ({reason}). Give its own with --base_model.") from error
    merged: PreTrainedModel = adapted.merge_and_unload().eval()
    if merged.generation_config is not None and expected.get("eos_token_id") is not None:
        merged.generation_config.eos_token_id = expected["eos_token_id"]
    return merged, tokenizer


def merge_adapter(name_or_path: str, folder: Path, base_model: str | None = None) -> Path:
    """Write an adapter and its base model as one whole model, with its tokenizer, and return the folder.

    Raises:
        InputError: no adapter, a folder that is not empty, or see `from_pretrained`.
    """
    ensure(
        _is_adapter(_locate(name_or_path, None)),
        f"adapter={name_or_path}: is a whole model already, there is nothing to merge.",
    )
    ensure(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"folder={folder}: is not empty. Give a new folder.",
    )
    model, tokenizer = from_pretrained(name_or_path, base_model=base_model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def base_fingerprint(model: "PreTrainedModel") -> str:
    """Return a hash that tells models of one shape apart, quickly: of the weights of their norms.

    Every training moves them, and they are a few kilobytes. Two models that differ in other weights alone, such as one
    with a merged adapter, are taken for the same.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 1:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def write_base_record(folder: Path, record: dict[str, Any]) -> None:
    """Write which model the adapter in a folder belongs to, and how its answers end."""
    write_json(folder / BASE_RECORD_NAME, record)


def resize_embeddings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give every token of the tokenizer an embedding, in place; nothing happens when all have one.

    New rows are drawn around the mean of the others, so that they start as plausible tokens (transformers' default). A
    vocabulary that was a multiple of 64 stays one, because matrix products are faster then; its last rows belong to no
    token. Global randomness decides the draw: seed it first.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    needed = max(tokenizer.get_vocab().values()) + 1
    if rows < needed:
        multiple = 64 if rows % 64 == 0 else None
        model.resize_token_embeddings(needed, pad_to_multiple_of=multiple, mean_resizing=True)


def load_config(
    key: str, name_or_path: str, revision: str | None = None, classifier: bool = False
) -> "PreTrainedConfig":
    """Return the config of a whole model.

    Args:
        key: the config key that names it, for the message.
        name_or_path: see `from_pretrained`.
        revision: branch, tag or commit of a Hub repository.
        classifier: whether the model must be able to classify texts instead of writing them: encoders can, too.

    Raises:
        InputError: see `from_pretrained`; also an adapter.
    """
    source = _locate(name_or_path, revision)
    ensure(
        not _is_adapter(source),
        f"{key}={name_or_path}: is an adapter. Add it into its base model first: ttl merge {name_or_path} FOLDER",
    )
    _check_config(source, classifier)
    from transformers import AutoConfig

    place = {"revision": source.revision} if source.folder is None else {}
    try:
        return AutoConfig.from_pretrained(source.name, trust_remote_code=False, **place)
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={name_or_path}: transformers cannot read its config.json: {error}") from error


def _check_config(source: _Source, classifier: bool = False) -> None:
    """Refuse a model without config.json, or one that transformers knows only by running the repository's code."""
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
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"name_or_path={source.name}: config.json is no JSON ({error}). Copy it again.") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    ensure(
        model_type in known,
        f"name_or_path={source.name}: model_type={model_type} in config.json is no {what} of transformers, and code "
        f"that comes with a repository is never run. Use a model of a built-in type such as {such_as}.",
    )


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
        message = "is neither a folder here nor a Hub repository id. Write owner/name, with one slash."
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
        raise InputError(_refusal(repository, filename, status, is_hidden, constants.ENDPOINT)) from error


def _refusal(repository: str, filename: str, status: int | None, is_hidden: bool, endpoint: str) -> str:
    """Return the message for a file that the Hub did not give, by HTTP status (None: no answer came)."""
    if is_hidden:
        return (
            f"name_or_path={repository}: no such folder here, and no such repository on {endpoint} that you may read "
            f"(HTTP {status}). Check the spelling; if it is private, log in with `hf auth login` or set HF_TOKEN to a "
            "token that can read it."
        )
    if status in (401, 403):
        return (
            f"name_or_path={repository}: {endpoint} refuses your token (HTTP {status}). Log in again with "
            "`hf auth login`, or set HF_TOKEN to a valid token that can read this repository."
        )
    reason = "no Hub can be reached there (or HF_HUB_OFFLINE is set)" if status is None else f"it answers HTTP {status}"
    return (
        f"name_or_path={repository}: {filename} is not in the local cache, and {endpoint} cannot give it: {reason}. "
        f"Run `hf download {repository}` once while online, or give a folder."
    )


def load_tokenizer(key: str, name_or_path: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a folder, a Hub repository or a short name.

    Args:
        key: the config key that names it, for the message.
        name_or_path: see `from_pretrained`.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        InputError: nothing is there, or what is there holds no tokenizer.
    """
    path = Path(name_or_path).expanduser()
    is_folder = path.exists() or name_or_path.startswith((os.sep, ".", "~"))
    if is_folder or name_or_path.count("/") != 1:
        ensure(
            path.is_dir() or name_or_path in PUBLISHED_MODELS,
            f"{key}={name_or_path}: no such folder, and not a Hub repository (owner/name). "
            "`ttl tokenizer` makes a tokenizer.",
        )
    source = _Source(str(path), folder=path) if path.is_dir() else _locate(name_or_path, revision)
    ensure(
        source.find(*TOKENIZER_FILES),
        f"{key}={name_or_path}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}). `ttl tokenizer` makes one.",
    )
    from transformers import AutoTokenizer

    from .tokenizer import make_portable

    place = {"revision": source.revision} if source.folder is None else {}
    try:
        return make_portable(AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, **place))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={name_or_path}: its tokenizer cannot be read: {error}") from error
