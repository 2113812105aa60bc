"""`ttl app MODEL`: checks, loads, serves."""

import os
from pathlib import Path
from typing import Any

from ..attention import place_for_answers
from ..checks import ensure
from ..published import PUBLISHED_MODELS, from_pretrained
from .config import AppConfig, check_address, check_packages, is_loopback
from .search import SearchIndex, read_pairs
from .space import write_space
from .talk import Speaker


def run_app(model: str, config: AppConfig) -> int:
    """Serve the page until it is interrupted, or write a Space; return 0.

    Args:
        model: a folder (a run, a checkpoint), a Hub repository, or a short name.
        config: see `AppConfig`.

    Raises:
        InputError: no such model, bad instruction data, or an address that cannot be served on.
        MissingPackageError: the extra `app` is not installed.
    """
    check_packages()
    if config.space_dir:
        folder = write_space(model, config)
        print(f"{folder} is a Space. Look at it, then: hf upload --repo-type space owner/name {folder}")
        return 0
    check_address(config.host, config.port)
    index = _read_index(config.instructions)
    print(f"loading {model} …", flush=True)
    loaded, tokenizer = from_pretrained(model, config.revision)
    placed, note = place_for_answers(loaded, config.use_cpu)
    if note:
        print(note)
    speaker = Speaker(placed, tokenizer)
    ensure(
        speaker.is_chat or not config.system,
        f"system={config.system}: {model} has no chat template, so it cannot be told anything. Leave system out.",
    )
    if not is_loopback(config.host):
        print(f"warning: host={config.host}: anyone in the network can use this page.")
    from .page import build_page, launch_arguments

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    page: Any = build_page(speaker, _title(model), config, index)
    print(f"http://{config.host}:{config.port}  (Ctrl-C ends)", flush=True)
    arguments = launch_arguments(config.host if is_loopback(config.host) else None)
    page.launch(server_name=config.host, server_port=config.port, **arguments)
    return 0


def _title(model: str) -> str:
    """Return a model's name for the page: of a folder its last part, since where it lies is nobody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else PUBLISHED_MODELS.get(model, model)


def _read_index(instructions: list[str]) -> SearchIndex | None:
    if not instructions:
        return None
    pairs, left_out = read_pairs(instructions)
    for reason, number in left_out.items():
        print(f"instructions: {number:,} rows left out: {reason}")
    print(f"instructions: {len(pairs):,} answers to search")
    return SearchIndex(pairs)
