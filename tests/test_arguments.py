import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from teenytinyllama.arguments import check_types, load_yaml, parse
from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.help_text import describe_keys


@dataclass
class Example:
    REFUSED_KEYS: ClassVar[dict[str, str]] = {"gone": "was taken away."}
    output_dir: str = field(metadata={"help": "where"})
    learning_rate: float = 1e-3
    max_tokens: int | None = None
    mode: Literal["file", "line"] = "file"
    flag: bool = False
    names: list[str] | None = None
    shape: dict[str, int] | None = None


def write(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_yaml_then_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "output_dir: a\nlearning_rate: 6e-4\nmax_tokens: 3.28e9\nflag: true\nshape: {layers: 2}\n")
    config = parse(Example, ["--config", path, "--output_dir=b", "--names", "x", "12", "--mode", "line"])
    assert config == Example("b", 6e-4, 3_280_000_000, "line", True, ["x", "12"], {"layers": 2})
    assert parse(Example, ["--output-dir", "1e-3", "--flag"]) == Example("1e-3", flag=True)
    assert parse(Example, ["--output_dir", "a", "--max_tokens", "-1e3"]).max_tokens == -1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output_dir: a\nlerning_rate: 1.0", "lerning_rate: unknown key. Did you mean 'learning_rate'"),
        ("output_dir: a\nwarmup_ratio: 0.1", "unknown key. It is now called warmup_steps"),
        ("output_dir: a\nlearning_rate: fast", "learning_rate='fast': wrong type .str.. It must be a number"),
        ("output_dir: a\nmax_tokens: 1.5", "max_tokens=1.5: wrong type .float.. It must be an integer"),
        ("output_dir: a\nmax_tokens: true", "max_tokens=True: wrong type"),
        ("output_dir: a\nmax_tokens: 1:30", "max_tokens='1:30': wrong type"),
        ("output_dir: a\nmax_tokens: 0100", "max_tokens='0100': wrong type"),
        ("output_dir: {{ run }}", "not valid YAML: a key that is no text"),
        ("output_dir: a\nflag: 1", "flag=1: wrong type .int.. It must be true or false"),
        ("output_dir: a\nflag: yes", "flag='yes': wrong type"),
        ("output_dir: a\nmode: page", "mode='page': .* one of file, line"),
        ("output_dir: a\nnames: [1]", "names=.1.: wrong type"),
        ("output_dir: a\nshape: 3", "shape=3: wrong type .int.. It must be a mapping"),
        ("output_dir: a\noutput_dir: b", r"output_dir: given twice in the YAML \(line 2\)"),
        ("output_dir: a\nshape: {a: 1, a: 2}", "a: given twice in the YAML"),
        ("output_dir: [a", "not valid YAML"),
        ("- a", "must hold `key: value` lines"),
        ("output_dir: a\ngone: 1", "gone=1: was taken away"),
        ("learning_rate: 1.0", "output_dir: missing"),
    ],
)
def test_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(Example, ["--config", write(tmp_path, text)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output_dir", "a", "--output_dir", "b"], "given twice on the command line"),
        (["a"], "a value without a key"),
        (["--output_dir", "a", "--oops", "1"], "oops: unknown key"),
    ],
)
def test_command_line_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(Example, argv)


class Mode(enum.StrEnum):
    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


@dataclass
class Library:
    """As transformers has it: a choice that also takes any text."""

    save_strategy: Mode | str = "steps"
    lr_scheduler_type: Mode | str = "no"


@dataclass
class Ours(Library):
    """Every kind of key that has bounds."""

    lr_scheduler_type: str = "steps"
    seed: int = 0
    tokens_per_step: int | None = None
    num_workers: int | None = None
    dataloader_num_workers: int = 0
    adam_beta1: float = 0.9
    weight_decay: float = 0.0
    label_smoothing_factor: float = 0.0
    context: int = 8
    tokens: int | None = None
    budget: float | None = None
    prompts: list[str] | None = None
    shape: dict[str, int] | None = None
    system: str = ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"save_strategy": ["steps", "epoch"]},
            r"save_strategy=\['steps', 'epoch'\]: wrong type .list.. .* one of no, steps",
        ),
        ({"save_strategy": "step"}, "save_strategy='step': no such choice. It must be one of no, .* mean 'steps'"),
        ({"lr_scheduler_type": "epok"}, "lr_scheduler_type='epok': no such choice. .* Did you mean 'epoch'"),
        ({"save_strategy": {"a": 1}}, "wrong type .dict."),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"seed": 2**32}, "seed=4.29497e.09: must be at most 4,294,967,295"),
        ({"tokens_per_step": 1e18}, "tokens_per_step=1e.18: must be at most 1,000,000,000"),
        ({"num_workers": 100_000}, "num_workers=100000: starts so many processes, .* or fewer"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1: must be 0 or more"),
        ({"adam_beta1": 1.0}, "adam_beta1=1: must be at most just below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: must be at least 0"),
        ({"label_smoothing_factor": 2}, "label_smoothing_factor=2: must be at most 1"),
        ({"context": 1e18}, "context=1e.18: must be at most 16,777,216"),
        ({"tokens": 10**30}, r"tokens=1e\+30: must fit into 64 bits"),
        ({"budget": 10**400}, "budget=1000.*… .401 characters.: wrong type"),
        ({"budget": float("inf")}, "budget=inf: must be a finite number"),
        ({"budget": float("nan")}, "budget=nan: must be a finite number"),
        ({"shape": {"num_hidden_layers": 10**30}}, "shape=1e.30: must fit into 64 bits"),
        ({"shape": {"num_hidden_layers": -(10**400)}}, "shape=-1e300 or beyond: must fit into 64 bits"),
        ({"prompts": ["a", "b\0"]}, "prompts: holds the character NUL"),
        ({"system": "a\udcff"}, "system: is not valid UTF-8 at character 2"),
    ],
)
def test_values_outside_the_bounds_of_their_key_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_types(Ours, values)


def test_values_on_the_bounds_are_taken() -> None:
    values = {
        "seed": 2**32 - 1,
        "tokens_per_step": 10**9,
        "num_workers": 64,
        "context": 2**24,
        "save_strategy": "epoch",
    }
    assert check_types(Ours, values) == values


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000, "!!int abc", "!!float x", "!!timestamp x"])
def test_what_python_cannot_hold_of_a_yaml_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="x: not valid YAML"):
        load_yaml(text, "x")


def test_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="config=nowhere.yaml: no such file"):
        parse(Example, ["--config", "nowhere.yaml"])
    with pytest.raises(InputError, match="is a folder"):
        parse(Example, ["--config", str(tmp_path)])
    (tmp_path / "latin.yaml").write_bytes("output_dir: São".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 13"):
        parse(Example, ["--config", str(tmp_path / "latin.yaml")])


def test_help_lists_keys() -> None:
    text = describe_keys(Example)
    assert "--output_dir  (text; required)" in text
    assert "--mode  (one of file, line; default file)" in text


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int abc", "n: not valid YAML: a value does not fit its tag"),
        ("a: !!bool x", "a value does not fit its tag"),
        ("a: !!timestamp x", "a value does not fit its tag"),
        ("a: !!float ''", "a value does not fit its tag"),
        ("!!map [a]", "a value does not fit its tag"),
        ("a: " + "9" * 5000, "a number beyond all bounds .Exceeds the limit"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply. A config is flat"),
        ("- " * 5000, "nested too deeply"),
        (_LAUGHS, "its anchors repeat one another to more than 100,000 values"),
        ("a: &a [*a]", "its anchors repeat one another"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "not valid YAML"),
        ("\x00\x01", "not valid YAML: unacceptable character"),
    ],
)
def test_yaml_that_is_no_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_yaml(text, "n")


def test_an_anchor_alone_is_no_harm() -> None:
    assert load_yaml("a: &a [1, 2]\nb: *a", "n") == {"a": [1, 2], "b": [1, 2]}
