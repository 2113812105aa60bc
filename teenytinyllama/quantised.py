"""Models whose weights are quantised already, by torchao or another library: which they are, and what they refuse."""

from typing import Any

from .checks import ensure, ensure_packages


def quantisation(config: Any) -> str | None:
    """Return by which method a model's weights are quantised, such as torchao; None where they are not.

    Args:
        config: of transformers, or the content of a `config.json`. Older models of compressed-tensors name their
            settings `compression_config`.
    """
    for name in ("quantization_config", "compression_config"):
        found = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
            return str(getattr(method, "value", method) or "an unnamed method")
    return None


def ensure_not_quantised(key: str, name: str, config: Any) -> Any:
    """Return a model's config after checking that its weights are as they were trained, not quantised.

    Args:
        key: the config key that names the model, for the message.
        name: the model's folder or repository, for the message.
        config: see `quantisation`.

    Raises:
        InputError: they are quantised.
    """
    method = quantisation(config)
    ensure(
        method is None,
        f"{key}={name}: its weights are quantised already (by {method}), and what was rounded away is lost. Give the "
        "model that it was made from.",
    )
    return config


def ensure_readable(config: Any) -> None:
    """Check that what reads the weights of a quantised model is installed.

    Other methods than ours, torchao's, are left to transformers.

    Raises:
        MissingPackageError: it is not; the message has the pip line.
    """
    if quantisation(config) == "torchao":
        ensure_packages("int8", "torchao")
