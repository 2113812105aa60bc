"""Models: load them and their tokenizers by short name, Hub repository or folder, merge adapters, complete saved ones.

No code of a repository is ever run. A Hub revision is resolved once, with config.json, and everything else is read at
that commit, so model and tokenizer cannot come from two versions. Weights are read from safetensors only: pickle files
can run code when they are read. Adapters (LoRA, DoRA) are loaded into the base model that they belong to, and never
into another. At the end: which of torch's kernels computes attention, and on which device a model answers.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError, ensure, ensure_folder, ensure_packages, near_folder
from .disk import scratch_folder
from .gpus import answering_device
from .model_files import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    PUBLISHED_MODELS,
    TOKENIZER_FILES,
    ModelSource,
    check_config,
    check_weights,
    is_adapter,
    locate,
    read_json_file,
    refusing_damage,
)
from .quantised import ensure_not_quantised
from .stage_folder import BASE_RECORD_NAME, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The sizes in a config from which memory and parameters are counted.
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
        return _load_adapter(source, base_model)
    ensure(base_model is None, f"base_model={base_model}: {name_or_path} is a whole model, no adapter. Leave it out.")
    check_config(source)
    check_weights(source)
    _ensure_tokenizer("name_or_path", source)
    from transformers import AutoModelForCausalLM  # only now, so that a refusal does not wait for torch

    tokenizer = _read_tokenizer("name_or_path", source, "its files")  # it reads config.json as well
    model, missing = _read_model(source, AutoModelForCausalLM)
    ensure(
        not missing,  # transformers draws them at random
        f"name_or_path={source.name}: config.json asks for {len(missing)} weights that its files do not hold "
        f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}). Download or copy the model again.",
    )
    return model, tokenizer


def _read_model(source: ModelSource, auto_class: Any, **more: Any) -> "tuple[PreTrainedModel, list[str]]":
    """Return a model from safetensors, without code of a repository, and which of its weights are in no file."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it is written into logs too, and stays on the screen
    with refusing_damage("name_or_path", source.name):
        model, loaded = auto_class.from_pretrained(
            **source.arguments, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **more
        )
    return model, sorted(loaded["missing_keys"])


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

    return _read_model(source, AutoModelForSequenceClassification, config=config, dtype=torch.float32)


def weights_identity(name_or_path: str, revision: str | None = None) -> str:
    """Return an identity of a model's weights: the commit on the Hub, or a hash of the files in a folder.

    Raises:
        InputError: see `from_pretrained`.
    """
    source = locate(name_or_path, revision)
    if source.folder is None:
        return source.revision
    files = [path for path in sorted(source.folder.glob("*.safetensors")) if path.is_file()]
    return sha256_json({path.name: sha256_file(path) for path in files})


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
        InputError: see `from_pretrained`; also an adapter, and weights that are quantised already.
    """
    source = locate(name_or_path, revision)
    ensure(
        not is_adapter(source),
        f"{key}={name_or_path}: is an adapter. Add it into its base model first: ttl merge {name_or_path} FOLDER",
    )
    check_config(source, classifier)
    from transformers import AutoConfig

    with refusing_damage(key, name_or_path, "its config.json"):
        config = AutoConfig.from_pretrained(**source.arguments, trust_remote_code=False)
    return ensure_not_quantised(key, name_or_path, config)


# Models of transformers whose logits are the output embeddings times the last hidden state and no more: no bias, no
# scale, no soft cap, as Gemma 2, Granite, Cohere and Phi have.
PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


def has_plain_head(config: Any) -> bool:
    """Return whether a model's logits are its output embeddings times the last hidden state and no more."""
    return str(config.model_type) in PLAIN_HEADS


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
    _ensure_tokenizer(key, source)
    return _read_tokenizer(key, source)


def _ensure_tokenizer(key: str, source: ModelSource) -> None:
    """Check that files of a tokenizer are there.

    Raises:
        InputError: there are none.
    """
    ensure(
        source.find(*TOKENIZER_FILES),
        f"{key}={source.name}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}). `ttl tokenizer` makes one; beside a "
        "model, save its own with `tokenizer.save_pretrained`.",
    )


def _read_tokenizer(key: str, source: ModelSource, what: str = "its tokenizer") -> "PreTrainedTokenizerBase":
    """Return a tokenizer whose files are there.

    Raises:
        InputError: they are damaged; the message calls them `what`.
    """
    from transformers import AutoTokenizer

    from .tokenizer.encode import check_sound, make_portable

    with refusing_damage(key, source.name, what):
        read: Any = AutoTokenizer.from_pretrained(**source.arguments, trust_remote_code=False)
        check_sound(read)
        tokenizer = make_portable(read)
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
    from .tokenizer.files import finish_tokenizer

    path = folder / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        mended = _with_older_names(config)
        if mended != config:
            write_json(path, mended)
    finish_tokenizer(folder)
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    rights = 0o666 & ~mask
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


def _load_adapter(source: ModelSource, base_model: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
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
    name, revision = (base_model, None) if base_model else (recorded, adapter.get("revision"))
    try:
        ensure(not is_adapter(locate(name, revision)), f"{name} is an adapter itself, and not a whole model.")
        model, tokenizer = from_pretrained(name, revision)
        ensure_not_quantised("model_name_or_path", name, model.config)
    except InputError as error:
        where = f"base_model={name}" if base_model else f"name_or_path={source.name}: its base model is {name}"
        raise InputError(f"{where}: {error} Give its place with --base_model.") from error
    record = source.find(BASE_RECORD_NAME)  # another library's adapter has none
    expected = read_json_file("name_or_path", source.name, record) if record else {}
    other = f"name_or_path={source.name}: is an adapter of another base model than {name}"
    ensure(
        expected.get("fingerprint") in (None, base_fingerprint(model)),
        f"{other}: it was trained on {expected.get('base_model')}. Give that one with --base_model.",
    )
    from peft import PeftModel

    if source.find(*TOKENIZER_FILES):
        tokenizer = _read_tokenizer("name_or_path", source)
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
    ensure(not folder.exists() or not any(folder.iterdir()), f"folder={folder}: is not empty. Give a new folder.")
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


def avoid_cudnn_attention() -> None:
    """Leave cuDNN's attention out in this process, as everything but pretraining should.

    It is torch's first choice on an H100 or H200, and there

    * its backward pass with a mask gives gradients that are not numbers at some row lengths (torch 2.11 and later;
      pytorch issue 196678, trl issue 7181). Met here when HateBR was fine-tuned.
    * it makes a plan for every length that a thread has not seen (pytorch pull request 190388), so each new token
      of an answer took 50 ms more (docs/gpu.md).

    Pretraining has rows of one length and no mask: there it is right. A process that pretrains afterwards turns it on
    again with `torch.backends.cuda.enable_cudnn_sdp(True)`, before layers are compiled: compiled code keeps the kernel
    that was chosen then, and so does torch's cache of it on disk (pytorch issue 185449).
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave cuDNN's attention out of a block or, as a decorator, of a function: for texts of many lengths."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    avoid_cudnn_attention()
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def place_for_answers(model: "PreTrainedModel", use_cpu: bool = False) -> tuple["PreTrainedModel", str | None]:
    """Return a model in evaluation mode on the device where it answers, and a note for the user or None.

    That is `gpus.answering_device`, or the processor where the GPU is full or this torch has no kernels for it.

    Args:
        model: on the processor.
        use_cpu: leave it there.
    """
    import torch

    avoid_cudnn_attention()
    placed: Any = model.eval()
    if use_cpu or (device := answering_device().type) == "cpu":
        return placed, None
    try:
        placed = placed.to(device)
        torch.zeros(1, device=device).add_(1).item()  # does this torch have kernels for it?
    except RuntimeError as why:  # no memory left is one, too
        return placed.to("cpu"), f"note: answers on the processor, because the GPU refuses: {str(why).splitlines()[0]}"
    return placed, None
