"""Where a model's files are: a folder or a Hub repository at one commit, and whether they can be read safely."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .checks import InputError, MissingFileError, ensure, near_folder, near_name
from .hub_client import hub_errors

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
class ModelSource:
    """Where the files of one model are: a folder, or a Hub repository at a commit (a revision until it is resolved)."""

    name: str
    folder: Path | None = None
    revision: str = "main"

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
        downloads = (_download(self.name, name, self.revision) for name in unknown)
        return next((path for path in downloads if path is not None), None)


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


def check_weights(source: ModelSource) -> None:
    """Refuse a model without weights in safetensors.

    Raises:
        InputError: it has none.
    """
    ensure(
        source.find(*WEIGHT_FILES),
        f"name_or_path={source.name}: holds no weights in safetensors ({' or '.join(WEIGHT_FILES)}). Pickle files such "
        "as pytorch_model.bin are refused because reading them can run code. Use a repository or revision with "
        "safetensors, or convert the weights with `save_pretrained` where you trust them.",
    )


def check_config(source: ModelSource, classifier: bool = False) -> None:
    """Refuse a model without config.json, or one that transformers knows only by running the repository's code.

    Raises:
        InputError: it is one of them, or its config.json is damaged.
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


def _download_first(repository: str, names: tuple[str, ...], revision: str) -> Path | None:
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
        raise InputError(_refusal(repository, filename, status, is_hidden, constants.ENDPOINT)) from error


def _refusal(repository: str, filename: str, status: int | None, is_hidden: bool, endpoint: str) -> str:
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
