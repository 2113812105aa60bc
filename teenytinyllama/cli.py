"""`ttl VERB --config x.yaml --key value`: thin verbs over the functions that the recipes call.

Nothing heavy is imported before a verb needs it.
"""

import importlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from .checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RESUMABLE, InputError, check_bounds, ensure, near_name, run_main
from .launch import recipes_folder, start_pretraining, start_stage
from .stage_folder import __version__
from .supervision import stopped_by_signals


def _take_option(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """Return the command line without `--name value`, and the value; for options that are no key of a config."""
    rest, value, words = [], None, iter(argv)
    for word in words:
        key, equals, inline = word.partition("=")
        if key.replace("-", "_") != f"__{name}":
            rest.append(word)
            continue
        ensure(value is None, f"--{name}: given twice on the command line. Keep one.")
        value = inline if equals else next(words, None)
        ensure(value and not value.startswith("--"), f"--{name}: needs a value.")
    return rest, value


def _single_path(verb: str, argv: list[str], what: str) -> str:
    ensure(len(argv) == 1 and not argv[0].startswith("--"), f"ttl {verb}: takes exactly one argument, {what}.")
    return argv[0]


def init(argv: list[str]) -> None:
    """Copy the recipes and configs to DIR/recipes, to read and to change."""
    from .demo import copy_recipes

    copy_recipes(recipes_folder(), Path(_single_path("init", argv, "the folder to make")))


def plan(argv: list[str]) -> None:
    """Say which model a budget buys, in tokens, hours, kWh, kg CO2e, memory and money, before anything is spent."""
    from .arguments import parse
    from .planning.config import PlanConfig
    from .planning.table import report_plan

    print(report_plan(parse(PlanConfig, argv), recipes_folder()))


def tokenizer(argv: list[str]) -> None:
    """Train a Portuguese tokenizer and audit it on held-out documents."""
    from .arguments import parse
    from .tokenizer.train import TokenizerConfig, build_tokenizer

    build_tokenizer(parse(TokenizerConfig, argv))


def pack(argv: list[str]) -> None:
    """Turn documents into fixed rows of tokens."""
    from .arguments import parse
    from .data.pack import PackConfig
    from .data.pack import pack as pack_corpus
    from .data.packed import print_summary

    print_summary(pack_corpus(parse(PackConfig, argv)))


def _take_ranks(argv: list[str]) -> tuple[list[str], str | None, int | None]:
    """Return the command line without the options of the ranks, the accelerate file, and the number of ranks."""
    argv, accelerate_file = _take_option(argv, "accelerate")
    argv, ranks = _take_option(argv, "num_processes")
    if ranks is None:
        return argv, accelerate_file, None
    is_number = ranks.isascii() and ranks.isdigit() and len(ranks) < 10 and int(ranks) > 0
    ensure(is_number, f"--num_processes {ranks[:100]}: must be a positive integer.")
    check_bounds("num_processes", int(ranks))
    return argv, accelerate_file, int(ranks)


def pretrain(argv: list[str]) -> int:
    """Pretrain from a preset or continue a model: [--accelerate NAME|FILE] [--num_processes N]."""
    argv, accelerate_file, ranks = _take_ranks(argv)
    from .arguments import read_values
    from .training.config import PretrainConfig

    return start_pretraining(read_values(PretrainConfig, argv), accelerate_file, ranks)


def conversations(argv: list[str]) -> None:
    """Turn instruction files into tokens with labels, to be tuned on."""
    from .arguments import parse
    from .data.conversations import ConversationsConfig
    from .tuning.base import prepare

    prepare(parse(ConversationsConfig, argv))


def sft(argv: list[str]) -> int:
    """Tune a model on instructions, all weights or LoRA: [--accelerate NAME|FILE] [--num_processes N]."""
    argv, accelerate_file, ranks = _take_ranks(argv)
    from .arguments import read_values
    from .tuning.base import SFT

    values = read_values(SFT.config, argv)
    return start_stage("sft.py", values, accelerate_file, ranks, SFT.prepare_inputs, SFT.check_before_launch)


def dpo(argv: list[str]) -> int:
    """Tune a chat model on preferences, pairs of answers: [--accelerate NAME|FILE] [--num_processes N]."""
    argv, accelerate_file, ranks = _take_ranks(argv)
    from .arguments import read_values
    from .tuning.base import DPO

    values = read_values(DPO.config, argv)
    return start_stage("dpo.py", values, accelerate_file, ranks, DPO.prepare_inputs, DPO.check_before_launch)


def classify(argv: list[str]) -> None:
    """Fine-tune a model on a classification task over several seeds: TASK MODEL [--seeds 3] [--random_init]."""
    from .arguments import parse
    from .classification.classify import classify as run_classify
    from .classification.config import ClassifyConfig, positional_keys

    run_classify(parse(ClassifyConfig, positional_keys(argv)))


def demo(argv: list[str]) -> int:
    """Make a tiny Portuguese model from the embedded stories, offline: [--output_dir DIR] [--max_tokens N]."""
    from .demo import run_demo

    return run_demo(argv, start_pretraining, recipes_folder())


def card(argv: list[str]) -> None:
    """Write a run's model card, or --check its numbers: RUN [--language en|pt|both] [--repository OWNER/NAME]."""
    argv, language = _take_option(argv, "language")
    argv, repository = _take_option(argv, "repository")
    checked = "--check" in argv
    folder = Path(_single_path("card", [word for word in argv if word != "--check"], "the run's folder"))
    if checked:
        from .publishing.card import check_model_card

        print(check_model_card(folder, repository, language))
        return
    from .publishing.card import write_model_card

    print(write_model_card(folder, repository, language))


def publish(argv: list[str]) -> None:
    """Publish a run and its checkpoints, or data, on the Hub or in a folder: RUN|DATA --to owner/name|folder:PATH."""
    words = list(itertools.takewhile(lambda word: not word.startswith("--"), argv))
    ensure(words, "ttl publish: needs a run (the output_dir of a training) or data (a folder or files).")
    from .arguments import parse
    from .publishing.dataset_content import is_dataset

    if is_dataset(words):
        from .publishing.publish_dataset import PublishDatasetConfig, publish_dataset

        publish_dataset(words, parse(PublishDatasetConfig, argv[len(words) :]))
        return
    ensure(len(words) == 1, f"ttl publish: one run at a time, and {', '.join(words)} are no data of a known kind.")
    from .publishing.follow import run_publish
    from .publishing.publish import PublishConfig

    run_publish(Path(words[0]), parse(PublishConfig, argv[1:]))


def emissions(argv: list[str]) -> None:
    """Report what runs consumed and emitted: RUN ... [--price USD_PER_GPU_HOUR] [--elsewhere BRA,PRT]."""
    argv, price = _take_option(argv, "price")
    argv, elsewhere = _take_option(argv, "elsewhere")
    ensure(
        argv and not any(word.startswith("--") for word in argv),
        "ttl emissions: takes the folders of one or more runs, --price and --elsewhere.",
    )
    try:
        usd_per_hour = None if price is None else float(price)
    except ValueError as error:
        raise InputError(f"price={price}: must be a number, in USD for an hour of one GPU.") from error
    from .publishing.energy_report import parse_elsewhere, write_energy_reports

    print(write_energy_reports([Path(word) for word in argv], usd_per_hour, parse_elsewhere(elsewhere)))


def merge(argv: list[str]) -> None:
    """Add a LoRA adapter into its base model: ADAPTER FOLDER [--base_model MODEL]."""
    argv, base_model = _take_option(argv, "base_model")
    ensure(
        len(argv) == 2 and not any(word.startswith("--") for word in argv),
        "ttl merge: takes two arguments, the adapter and the folder for the whole model.",
    )
    from .models import merge_adapter

    print(merge_adapter(argv[0], Path(argv[1]), base_model))


def chat(argv: list[str]) -> int:
    """Talk with a model in the terminal: MODEL [--system TEXT] [--seed N] [--check-template]."""
    if argv and argv[0].replace("-", "_") == "__check_template":
        argv = [*argv[1:], argv[0]]
    ensure(argv and not argv[0].startswith("--"), "ttl chat: needs a model: a folder or a Hub repository.")
    from .arguments import parse
    from .chat.terminal import ChatConfig, run_chat

    return run_chat(argv[0], parse(ChatConfig, argv[1:]))


def app(argv: list[str]) -> int:
    """Serve a page to talk with a model: MODEL [--instructions FILES] [--host H] [--port N] [--space_dir DIR]."""
    ensure(argv and not argv[0].startswith("--"), "ttl app: needs a model: a folder or a Hub repository.")
    from .arguments import parse
    from .chat.page import AppConfig
    from .chat.space import run_app

    return run_app(argv[0], parse(AppConfig, argv[1:]))


def evaluate(argv: list[str]) -> int:
    """Measure a model: MODEL [--suite lm|paper|leaderboard|signal|all] [--tasks …] [--data_dir DIR] [--checkpoints]."""
    argv, accelerate_file, num_processes = _take_ranks(argv)
    from .arguments import parse
    from .evaluation.config import EvaluateConfig
    from .launch import launch, plan_ranks
    from .stage_folder import command_line

    words = argv if not argv or argv[0].startswith("--") else ["--model_name_or_path", *argv]
    config = parse(EvaluateConfig, words)
    script = recipes_folder() / "evaluate.py"
    if plan_ranks(script, words, accelerate_file, num_processes).num_processes > 1:
        os.environ.setdefault("TTL_COMMAND", command_line())
        return launch(script, words, accelerate_file, num_processes)
    from .evaluation.evaluate import evaluate_model
    from .stage_folder import RESULTS_TABLE_NAME

    folder = evaluate_model(config)
    print((folder / RESULTS_TABLE_NAME).read_text(encoding="utf-8"))
    print(folder)
    return EXIT_DONE


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": demo,
    "init": init,
    "plan": plan,
    "tokenizer": tokenizer,
    "pack": pack,
    "pretrain": pretrain,
    "conversations": conversations,
    "sft": sft,
    "dpo": dpo,
    "classify": classify,
    "merge": merge,
    "chat": chat,
    "app": app,
    "evaluate": evaluate,
    "emissions": emissions,
    "card": card,
    "publish": publish,
}


def _usage() -> str:
    verbs = "\n".join(f"  {name:13} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    return (
        f"ttl {__version__}: open Portuguese language models from raw text to the Hub\n\n"
        f"usage: ttl VERB [--config file.yaml] [--key value ...]\n\n{verbs}\n\n"
        "`ttl VERB --help` lists the keys of a verb. Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped, resumable."
    )


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(_usage())
        return EXIT_DONE if argv else EXIT_BAD_INPUT
    if argv[0] == "--version":
        print(__version__)
        return EXIT_DONE
    if argv[0] not in VERBS:
        raise InputError(f"{argv[0]}: unknown verb.{near_name(argv[0], VERBS)} `ttl --help` lists them.")
    ensure("\0" not in "".join(argv), f"{argv!r}: holds the character NUL, which no path can. Write it without.")
    verb = VERBS[argv[0]]
    if argv[1:] and argv[1] in ("--help", "-h"):
        print(f"ttl {argv[0]}: {(verb.__doc__ or '').strip()}\n\n{_describe_verb(argv[0])}")
        return EXIT_DONE
    if argv[0] in _ENDED_BY_SIGNALS:
        return _until_signal(verb, argv[1:])
    from .energy.recorder import counted_time

    with stopped_by_signals(_AFTER_A_SIGNAL.get(argv[0], "the same command starts again")), counted_time():
        return verb(argv[1:]) or EXIT_DONE


# What Ctrl-C leaves of a verb. Ranks, `evaluate` and `classify` say it themselves once they work.
_AFTER_A_SIGNAL = {
    "pack": "what is packed is kept; the same command goes on",
    "demo": "what is complete is kept; the same command goes on",
    "publish": "what is published stays; the same command goes on",
    **dict.fromkeys(("pretrain", "sft", "dpo"), "nothing on disk was lost; the same command starts again or goes on"),
}
# They last until somebody ends them.
_ENDED_BY_SIGNALS = ("app", "chat")


def _until_signal(verb: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Run a verb whose usual end is Ctrl-C, or TERM."""
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        return verb(argv) or EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_DONE
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)


# The config of each verb: module, class, and whether only our own keys are listed, not TrainingArguments' hundred.
_CONFIGS = {
    "plan": ("planning.config", "PlanConfig", False),
    "tokenizer": ("tokenizer.train", "TokenizerConfig", False),
    "pack": ("data.pack", "PackConfig", False),
    "pretrain": ("training.config", "PretrainConfig", True),
    "conversations": ("data.conversations", "ConversationsConfig", False),
    "sft": ("tuning.config", "SftConfig", True),
    "dpo": ("tuning.config", "DpoConfig", True),
    "evaluate": ("evaluation.config", "EvaluateConfig", False),
    "classify": ("classification.config", "ClassifyConfig", False),
    "chat": ("chat.terminal", "ChatConfig", False),
    "app": ("chat.page", "AppConfig", False),
    "publish": ("publishing.publish", "PublishConfig", False),
}


def _describe_verb(verb: str) -> str:
    from .arguments import describe_keys

    def keys(module: str, name: str, own_only: bool) -> str:
        return describe_keys(getattr(importlib.import_module(f".{module}", __package__), name), own_only=own_only)

    described = keys(*_CONFIGS[verb]) if verb in _CONFIGS else ""
    if verb == "publish":
        described += "\n\nof data:\n\n" + keys("publishing.dataset_content", "DatasetOptions", False)
    return described


def main(argv: list[str] | None = None) -> int:
    """Run the `ttl` command and return its exit code."""
    code = run_main(lambda: _run(sys.argv[1:] if argv is None else argv))
    if argv is None and code == EXIT_RESUMABLE:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not change how this process ends
    return code
