"""Load a model and its tokenizer by short name, Hub repository or folder, without ever running a repository's code.

A Hub revision is resolved once, with config.json, and everything else is read at that commit, so model and tokenizer
cannot come from two versions. Weights are read from safetensors only: pickle files can run code when they are read.
"""

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import ensure, near_folder
from .manifest import sha256_file, sha256_json, write_json
from .model_files import (
    PUBLISHED_MODELS,
    TOKENIZER_FILES,
    ModelSource,
    check_config,
    check_weights,
    is_adapter,
    locate,
    refusing_damage,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What memory and parameters are counted from.
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "vocab_size", "max_position_embeddings")  # fmt: skip


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
    source = locate(str(name_or_path), revision)
    if is_adapter(source):
        from .adapters import load_adapter  # which needs this module for its base model

        return load_adapter(source, base_model)
    ensure(base_model is None, f"base_model={base_model}: {name_or_path} is a whole model, no adapter. Leave it out.")
    check_config(source)
    check_weights(source)
    ensure(
        source.find(*TOKENIZER_FILES),
        f"name_or_path={source.name}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}). Save one beside the model "
        "with `tokenizer.save_pretrained`.",
    )
    # Only now, so that a refusal does not wait for torch.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .tokenizer import make_portable

    place = {"revision": source.revision} if source.folder is None else {}
    with refusing_damage("name_or_path", source.name):
        tokenizer = make_portable(AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, **place))
        tokenizer("a")  # what a damaged file breaks only in use
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.name, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **place
        )
    model, loaded = read
    missing = sorted(loaded["missing_keys"])  # which transformers draws at random
    ensure(
        not missing,
        f"name_or_path={source.name}: config.json asks for {len(missing)} weights that its files do not hold "
        f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}). Download or copy the model again.",
    )
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
    source = locate(name_or_path, revision)
    check_weights(source)
    import torch
    from transformers import AutoModelForSequenceClassification

    place = {"revision": source.revision} if source.folder is None else {}
    with refusing_damage("name_or_path", source.name):
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            source.name, config=config, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, **place,
        )  # fmt: skip
    return model, sorted(loaded["missing_keys"])


def weights_identity(name_or_path: str, revision: str | None = None) -> str:
    """Return what tells these weights from others: a Hub commit, or a hash of the files in a folder.

    Raises:
        InputError: see `from_pretrained`.
    """
    source = locate(name_or_path, revision)
    if source.folder is None:
        return source.revision
    return sha256_json({path.name: sha256_file(path) for path in sorted(source.folder.glob("*.safetensors"))})


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


def end_token_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that end a text, by the model's generation config or else by the tokenizer."""
    config = model.generation_config
    ends = tokenizer.eos_token_id if config is None or config.eos_token_id is None else config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


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
    source = locate(name_or_path, revision)
    ensure(
        not is_adapter(source),
        f"{key}={name_or_path}: is an adapter. Add it into its base model first: ttl merge {name_or_path} FOLDER",
    )
    check_config(source, classifier)
    from transformers import AutoConfig

    place = {"revision": source.revision} if source.folder is None else {}
    with refusing_damage(key, name_or_path, "its config.json"):
        return AutoConfig.from_pretrained(source.name, trust_remote_code=False, **place)


def ensure_llama_shape(key: str, name: str, config: "PreTrainedConfig") -> None:
    """Check that a model has the shape that memory and parameters are counted from.

    Raises:
        InputError: it has another, such as GPT-2's.
    """
    missing = [field for field in _SHAPE if not isinstance(getattr(config, field, None), int)]
    ensure(
        not missing,
        f"{key}={name}: is a {config.model_type} whose config lacks {', '.join(missing)}. Use a model with a Llama's "
        "shape: Llama, Mistral, Qwen, SmolLM and their kin.",
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
            f"{key}={name_or_path}: no such folder, and not a Hub repository (owner/name).{near_folder(path)} "
            "`ttl tokenizer` makes a tokenizer.",
        )
    source = ModelSource(str(path), folder=path) if path.is_dir() else locate(name_or_path, revision)
    ensure(
        source.find(*TOKENIZER_FILES),
        f"{key}={name_or_path}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}). `ttl tokenizer` makes one.",
    )
    from transformers import AutoTokenizer

    from .tokenizer import make_portable

    place = {"revision": source.revision} if source.folder is None else {}
    with refusing_damage(key, name_or_path, "its tokenizer"):
        tokenizer = make_portable(AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, **place))
        tokenizer("a")  # what a damaged file breaks only in use
        return tokenizer


def finish_saved(folder: Path) -> None:
    """Complete a folder into which a model, an adapter or a tokenizer was saved, so that other programs read it right.

    Every stage calls this after a save and before it hashes files. Rotary positions stand in config.json under the
    names of transformers 4 as well, which vLLM and mlx share: without them a base of 500,000 is silently read as
    10,000. Weights get the rights that other new files have: safetensors writes them for their owner alone.

    Args:
        folder: the one that was saved into; folders in it are left alone.
    """
    from .tokenizer import finish_tokenizer

    path = folder / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        mended = _with_older_names(config)
        if mended != config:
            write_json(path, mended)
    finish_tokenizer(folder)
    rights = 0o666 & ~_umask()
    for weights in folder.glob("*.safetensors"):
        mode = stat.S_IMODE(weights.stat().st_mode)
        if mode != mode | rights:
            weights.chmod(mode | rights)


def _with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with `rope_theta`, `rope_scaling` and their kin beside `rope_parameters`, also of its parts."""
    mended = {
        name: _with_older_names(value) if name.endswith("_config") and isinstance(value, dict) else value
        for name, value in config.items()
    }
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return mended
    if "full_attention" in rope:  # one set for each type of layer, as Gemma 3 has them
        local, rope = rope.get("sliding_attention") or {}, rope["full_attention"] or {}
        if "rope_theta" in local:
            mended.setdefault("rope_local_base_freq", local["rope_theta"])
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            mended[name] = rope[name]
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default":
        mended["rope_scaling"] = scaling
    return mended


def _umask() -> int:
    """Return the rights that this process takes from new files."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask
