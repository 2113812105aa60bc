"""Adapters (LoRA, DoRA): loaded into the base model that they belong to, and never into another."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError, ensure, ensure_folder, ensure_packages
from .locks import scratch_folder
from .manifest import write_json
from .model_files import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    BASE_RECORD_NAME,
    TOKENIZER_FILES,
    ModelSource,
    is_adapter,
    locate,
    read_json_file,
    refusing_damage,
)
from .published import finish_saved, from_pretrained, load_tokenizer, resize_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_adapter(source: ModelSource, base_model: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return an adapter merged into its base model, and its tokenizer.

    Raises:
        InputError: it is damaged, or its base model is another or cannot be loaded.
    """
    ensure_packages("sft", "peft")
    found = source.find(ADAPTER_CONFIG_NAME)
    assert found is not None
    adapter = read_json_file("name_or_path", source.name, found)
    recorded = adapter.get("base_model_name_or_path")
    ensure(
        isinstance(recorded, str) and recorded,
        f"name_or_path={source.name}: {ADAPTER_CONFIG_NAME} is damaged (base_model_name_or_path={recorded!r}).",
    )
    assert isinstance(recorded, str)
    ensure(
        source.find(ADAPTER_WEIGHTS_NAME),
        f"name_or_path={source.name}: holds no {ADAPTER_WEIGHTS_NAME}. Pickle files such as adapter_model.bin are "
        "refused because reading them can run code.",
    )
    name = base_model or recorded
    try:
        ensure(
            not is_adapter(locate(name, None if base_model else adapter.get("revision"))),
            f"{name} is an adapter itself, and not a whole model.",
        )
        model, tokenizer = from_pretrained(name, None if base_model else adapter.get("revision"))
    except InputError as error:
        where = f"base_model={name}" if base_model else f"name_or_path={source.name}: its base model is {name}"
        raise InputError(f"{where}: {error} Give its place with --base_model.") from error
    expected = _base_record(source)
    other = f"name_or_path={source.name}: is an adapter of another base model than {name}"
    ensure(
        expected.get("fingerprint") in (None, base_fingerprint(model)),
        f"{other}: it was trained on {expected.get('base_model')}. Give that one with --base_model.",
    )
    from peft import PeftModel

    if source.find(*TOKENIZER_FILES):
        tokenizer = load_tokenizer("name_or_path", source.name, None if source.folder else source.revision)
    resize_embeddings(model, tokenizer)
    with refusing_damage("name_or_path", source.name, f"{ADAPTER_CONFIG_NAME} or {ADAPTER_WEIGHTS_NAME}"):
        try:
            adapted: Any = PeftModel.from_pretrained(model, str(found.parent))
        except (RuntimeError, ValueError) as error:  # sizes or names of layers that do not fit
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{other} ({reason}). Give its own with --base_model.") from error
    merged: PreTrainedModel = adapted.merge_and_unload().eval()
    if merged.generation_config is not None and expected.get("eos_token_id") is not None:
        merged.generation_config.eos_token_id = expected["eos_token_id"]
    return merged, tokenizer


def _base_record(source: ModelSource) -> dict[str, Any]:
    """Return what `write_base_record` wrote, or nothing for an adapter that another library made."""
    record = source.find(BASE_RECORD_NAME)
    return read_json_file("name_or_path", source.name, record) if record else {}


def merge_adapter(name_or_path: str, folder: Path, base_model: str | None = None) -> Path:
    """Write an adapter and its base model as one whole model, with its tokenizer, and return the folder.

    Raises:
        InputError: no adapter, a folder that is not empty, or see `from_pretrained`.
    """
    ensure(
        is_adapter(locate(name_or_path, None)),
        f"adapter={name_or_path}: is a whole model already, there is nothing to merge.",
    )
    ensure_folder("folder", folder)
    ensure(
        not folder.exists() or not any(folder.iterdir()),
        f"folder={folder}: is not empty. Give a new folder.",
    )
    model, tokenizer = from_pretrained(name_or_path, base_model=base_model)
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place.parent) as scratch:  # the folder appears whole or not at all
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        finish_saved(scratch)
        os.replace(scratch, place)
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
