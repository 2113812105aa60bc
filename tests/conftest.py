"""Fixtures that the suites share. No test reaches the network: the Hub client is offline before anything imports it."""

import gc
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Models of a few thousand parameters: more threads only wait for each other, badly so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The compiled loss is small: workers for it would each take longer to import torch than to compile.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


# The test files that take longest, the longest first: one that began last would keep one core busy alone.
LONGEST = (
    "machines", "faults", "ranks", "package", "notebooks", "guards", "guides", "corpus_executors", "documents",
    "pretrain", "micro_batch", "publish_hub", "beside", "evaluate", "sft", "gpu_scripts", "published", "speed",
    "classification", "app", "checkpoints", "dpo", "caps", "memory", "publish_contents", "cards",
    "launcher", "demo", "publish_follow", "cli", "ledger", "meter", "packing", "plan", "dataset_publishing", "dataset_push",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Keep what the test files imported out of every later garbage collection, of which each training does several.

    torch, transformers, trl and gradio make millions of objects that live until the end. Without looking at them
    again and again, tests of training take a seventh less time.
    """
    gc.collect()
    gc.freeze()


def without_other_tool(reason: str) -> NoReturn:
    """Skip a test that needs another program; where TTL_REQUIRE_OTHER_TOOLS is set, as in .ci/run, fail instead."""
    if os.environ.get("TTL_REQUIRE_OTHER_TOOLS"):
        pytest.fail(f"TTL_REQUIRE_OTHER_TOOLS is set, and {reason}")
    pytest.skip(reason)


def other_tool(name: str) -> ModuleType:
    """Return the module of another program, see `without_other_tool`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        without_other_tool(f"{name} is not installed ({error})")


@pytest.fixture(scope="session")
def sample_texts() -> list[str]:
    """A few hundred short Portuguese texts."""
    from teenytinyllama.data.sample import sample_documents

    return [row["text"] for row in sample_documents("train", 300)]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two jsonl sources of a few hundred documents."""
    from teenytinyllama.data.sample import sample_documents

    folder = tmp_path_factory.mktemp("corpus")
    rows = list(sample_documents("train", 400))
    for name, part in (("contos", rows[:300]), ("curtas", rows[300:])):
        lines = [
            json.dumps({"text": row["text"], "metadata": f"source: {name}; license: CC0-1.0"}, ensure_ascii=False)
            for row in part
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, sample_texts: list[str]) -> Path:
    """A saved tokenizer of 600 entries."""
    from teenytinyllama import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(sample_texts, vocab_size=600).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def packed_folder(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path, tokenizer_folder: Path) -> Path:
    """Packed rows of 32 tokens, with about a tenth of the documents held out."""
    from teenytinyllama.data.pack import PackConfig, pack

    folder = tmp_path_factory.mktemp("pack") / "packed"
    return pack(
        PackConfig(
            inputs=[str(corpus_folder)],
            tokenizer=str(tokenizer_folder),
            output_dir=str(folder),
            context=32,
            validation_fraction=0.1,
        )
    )


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A finished run with two checkpoints, written without training; tests that change it take `run`."""
    from made_runs import make_run

    return make_run(tmp_path_factory.mktemp("made") / "run", tokenizer_folder)


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    """A copy of `made_run`, to be changed."""
    return Path(shutil.copytree(made_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Portuguese data; tests that need it are skipped without it."""
    folder = Path(os.environ.get("TTL_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "corpus").is_dir():
        pytest.skip("no real data: set TTL_REAL_DATA")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, for the tests of pages. Ended after a file: as long as it runs, its event loop does too."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def under_zero(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, int], None]:
    """Return a function that lets a library's class of arguments find accelerate's DeepSpeed plugin of a ZeRO stage."""

    def set_stage(arguments_class: type, stage: int) -> None:
        made: Any = arguments_class.__post_init__  # type: ignore[attr-defined]

        def made_under_zero(arguments: Any) -> None:
            made(arguments)
            arguments.deepspeed_plugin = SimpleNamespace(zero_stage=stage)

        monkeypatch.setattr(arguments_class, "__post_init__", made_under_zero)

    return set_stage
