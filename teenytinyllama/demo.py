"""`ttl demo`: the whole main job at size `tiny` on the embedded stories, offline, in minutes on two CPU cores.

`ttl init`: copy the recipes out of the package, each with the version it comes from.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checks import EXIT_DONE, RunFailedError, ensure, ensure_folder
from .launching.launch import start_training
from .launching.ranks import RankOptions
from .stage_folder import MANIFEST_NAME, STORIES_NAME, __version__, write_json

_FROM_A_MODEL = ("model_name_or_path", "model_revision", "decay_from")
NUM_STORIES = 50
STORY_TOKENS = 160


@dataclass
class InitConfig:
    """`ttl init DIR`: where the recipes are copied to."""

    folder: str = field(metadata={"help": "folder in which recipes/ is made"})


# Run in a process that cannot know this package: `-I` ignores PYTHONPATH and the working directory, and the check at
# the end would notice the package if anything imported it.
_RELOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
folder, prompt = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
set_seed(1)
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.8, top_k=50)
assert "teenytinyllama" not in sys.modules
print(type(model).__name__ + "\\t" + tokenizer.decode(output[0], skip_special_tokens=True).replace("\\n", " "))
"""


def run_demo(given: dict[str, Any], recipes: Path) -> int:
    """Run every stage in `output_dir`; a stage that is already complete there is not repeated.

    Args:
        given: `output_dir` (default runs/demo) and any key of the pretraining config, such as `max_tokens`.
        recipes: folder with `configs/tiny/pretrain.yaml`.

    Returns:
        0, or the exit code of a training that did not end well.

    Raises:
        InputError: a key is refused; nothing was made.
    """
    from .data.pack import PackConfig, pack
    from .data.packed import print_summary
    from .presets import PRESETS
    from .tokenizer.train import TokenizerConfig, build_tokenizer

    start = time.time()
    preset = PRESETS["tiny"]
    folder = Path(given.get("output_dir") or "runs/demo")
    values = _checked_values(given, recipes, folder, preset.max_position_embeddings)
    _say("1/5 tokenizer, trained on the embedded stories and audited on held-out ones")
    tokenizer = build_tokenizer(
        TokenizerConfig(inputs=["sample"], vocab_size=preset.vocab_size, output_dir=str(folder / "tokenizer"))
    )
    _say("2/5 packing: documents to rows of tokens")
    packed = pack(
        PackConfig(
            inputs=["sample"],
            tokenizer=str(tokenizer),
            context=preset.max_position_embeddings,
            output_dir=str(folder / "packed"),
        )
    )
    print_summary(packed)
    _say("3/5 pretraining")
    run = folder / "base"
    values |= {"tokenizer": str(tokenizer), "packed": str(packed), "output_dir": str(run)}
    code = start_training("pretrain", values, RankOptions())
    if code != EXIT_DONE:
        return code
    _say(f"4/5 {NUM_STORIES} stories by the model, measured against the training stories and their grammar")
    report = _story_report(run, values)
    _say("5/5 reloading in a fresh process, with transformers alone")
    reloaded = reload_elsewhere(run)
    _print_summary(folder, run, report, reloaded, time.time() - start)
    return EXIT_DONE


def _checked_values(given: dict[str, Any], recipes: Path, folder: Path, context: int) -> dict[str, Any]:
    """Return the values of the demo's training; what is wrong with them is said before its data is made.

    Raises:
        InputError: a key that the demo sets itself, one that the training refuses, or a folder that cannot be.
    """
    from .arguments import build, read_values
    from .training.config import PretrainConfig, PretrainConfigBeforePacking

    usual = read_values(PretrainConfig, ["--config", str(recipes / "configs" / "tiny" / "pretrain.yaml")])
    for key in ("tokenizer", "packed", "inputs", "validation_inputs", "preset", "context", *_FROM_A_MODEL):
        ensure(
            given.get(key) in (None, usual.get(key)),
            f"{key}={given.get(key)}: the demo makes its own tokenizer, rows and model. Leave it out, or use "
            "`ttl pretrain`.",
        )
    values = {**usual, **given}
    build(PretrainConfigBeforePacking, {**values, "context": context, "output_dir": str(folder), "use_cpu": True})
    ensure_folder("output_dir", folder)
    return values


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _story_report(run: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Measure 50 stories of the trained model and of the same model before training; keep them in `stories.json`."""
    from .chat.generation import generate_texts
    from .data.sample import sample_documents
    from .evaluation.stories import story_report
    from .stage_folder import sha256_file

    model_sha256 = sha256_file(run / "model.safetensors")
    path = run / STORIES_NAME
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["model_sha256"] == model_sha256:
            return dict(report)
    from transformers import AutoModelForCausalLM, set_seed

    from .models import from_pretrained

    trained, tokenizer = from_pretrained(run)
    set_seed(values.get("seed", 42))
    untrained = AutoModelForCausalLM.from_config(trained.config)
    train_texts = [row["text"] for row in sample_documents("train")]
    report = {"model_sha256": model_sha256}
    for name, model in (("trained", trained), ("untrained", untrained)):
        stories = generate_texts(model, tokenizer, [""] * NUM_STORIES, STORY_TOKENS, seed=0)  # from `<s>` alone
        report[name] = {**story_report(stories, train_texts), "stories": stories}
    write_json(path, report)
    return report


def reload_elsewhere(run: Path, prompt: str = "Era uma vez") -> str:
    """Load the run's model in a process of its own without our package and return its class and a continuation.

    Raises:
        RunFailedError: it does not load.
    """
    command = [sys.executable, "-I", "-c", _RELOAD, str(run.resolve()), prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RunFailedError(f"{run} does not load with transformers alone:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def _share(value: float | None) -> str:
    return "  n/a" if value is None else f"{100 * value:5.1f} %"


def _print_summary(folder: Path, run: Path, report: dict[str, Any], reloaded: str, seconds: float) -> None:
    manifest = json.loads((run / MANIFEST_NAME).read_text(encoding="utf-8"))
    training, results = manifest["training"], manifest["results"]
    before, after = results["initial"], results["final"]
    class_name, _, continuation = reloaded.partition("\t")
    print(
        f"\n{'=' * 78}\nA Portuguese model of {manifest['model']['num_parameters']:,} parameters in {seconds:.0f} s\n"
    )
    print(f"{'':34}{'untrained':>12}{'trained':>12}   goal")
    if after["bits_per_byte"] is not None:
        scores = f"{before['bits_per_byte']:12.3f}{after['bits_per_byte']:12.3f}"
        print(f"{'held-out bits per byte':34}{scores}   1.17 or less")
        print(f"{'held-out perplexity':34}{before['perplexity']:12.1f}{after['perplexity']:12.1f}")
    print(f"{'training loss (first, last)':34}{training['first_loss']:12.3f}{training['last_loss']:12.3f}")
    for label, key, goal in (
        ("words in the training lexicon", "lexicon_share", "98 % or more"),
        ("8-grams copied from training", "copied_share", "20 % or less"),
        ("agreement by the grammar", "agreement_share", "95 % or more"),
    ):
        print(f"{label:34}{_share(report['untrained'][key]):>12}{_share(report['trained'][key]):>12}   {goal}")
    print("\nTwo of its stories:")
    for story in report["trained"]["stories"][:2]:
        print("  | " + story.strip().replace("\n", "\n  | ") + "\n")
    print(f"Reloaded as {class_name} without this package: {continuation}\n")
    print(
        f"{training['tokens']:,} tokens in {training['steps']} steps, "
        f"{training['tokens_per_second']:,.0f} tokens/s on average, "
        f"{training['peak_memory_gb']:.1f} GB of memory in the training process\n"
    )
    print(f"model     {run}   (from_pretrained loads it)")
    print(f"card      {run}/README.md\nplot      {run}/loss.png")
    print(f"metrics   {run}/metrics.jsonl\nenergy    {run}/emissions.csv")
    print(f"tokenizer {folder}/tokenizer   audit {folder}/tokenizer/audit.json\n")
    print("Next: ttl init my-model, put Portuguese texts into my-model/corpus and follow recipes/reproduce.sh")


_COMMENTED = {".py", ".yaml", ".sh", ".sbatch"}  # JSON knows no comments


def copy_recipes(source: Path, folder: Path) -> Path:
    """Copy all recipes, configs, accelerate and DeepSpeed files to `folder`/recipes and return that folder.

    Raises:
        InputError: the folder holds recipes already.
    """
    target = folder / "recipes"
    ensure(
        not target.exists(),
        f"DIR={folder}: {target} exists already and may hold your changes. Choose another folder, or move it away.",
    )
    ensure_folder("DIR", target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(target.rglob("*")):
        if path.suffix in _COMMENTED:
            _add_header(path)
    print(
        f"recipes of teenytinyllama {__version__} in {target}; next: cd {folder}, and then "
        "ttl tokenizer --config recipes/configs/tiny/tokenizer.yaml"
    )
    return target


def _add_header(path: Path) -> None:
    header = f"# from teenytinyllama {__version__}\n"
    text = path.read_text(encoding="utf-8")
    if text.startswith("#!"):  # the shebang stays the first line
        first, _, rest = text.partition("\n")
        path.write_text(f"{first}\n{header}{rest}", encoding="utf-8")
    else:
        path.write_text(header + text, encoding="utf-8")
