from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from teenytinyllama.arguments import describe_keys, load_yaml, parse
from teenytinyllama.checks import InputError, MissingFileError


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
