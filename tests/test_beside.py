"""Nothing beside the model ends a run: meters, plots, samples and records that fail, and what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pretrain import make_values, run

from teenytinyllama.checks import InputError, StoppedResumable, beside_the_model
from teenytinyllama.energy import meter as meter_module
from teenytinyllama.energy.emissions import GridSettings
from teenytinyllama.energy.ledger import LedgerWriter, read_energy, read_ledger
from teenytinyllama.energy.recorder import StageMeter
from teenytinyllama.publishing.card import write_model_card
from teenytinyllama.publishing.energy_report import write_energy_report
from teenytinyllama.publishing.facts import read_metrics
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training import metrics as metrics_module
from teenytinyllama.training import trainer as trainer_module
from teenytinyllama.training.metrics import append_jsonl, gaps_of, plot_loss, read_jsonl, rewind_jsonl


def fail(*given: Any, **named: Any) -> Any:
    raise ZeroDivisionError("a stranger's library")


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path) -> Path:
    values = make_values(tmp_path_factory.mktemp("beside"), packed_folder, tokenizer_folder)
    run(values)
    return Path(values["output_dir"])


def test_what_fails_beside_the_model_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    reasons: list[str] = []
    with beside_the_model("the plot", reasons.append):
        fail()
    assert reasons == ["ZeroDivisionError: a stranger's library"]
    assert capsys.readouterr().out == (
        "warning    the plot failed: ZeroDivisionError: a stranger's library. The run goes on without it.\n"
    )
    with beside_the_model("the card"):
        raise InputError("x=1: no")
    assert "the card failed: x=1: no." in capsys.readouterr().out
    for passing in (StoppedResumable("x"), KeyboardInterrupt()):
        with pytest.raises(KeyboardInterrupt), beside_the_model("the plot"):
            raise passing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (metrics_module, "plot_loss"),
        (metrics_module, "append_jsonl"),
        (metrics_module, "rewind_jsonl"),
        (trainer_module, "generate_texts"),
        (meter_module.EnergyMeter, "__init__"),
        (meter_module.EnergyMeter, "start"),
        (meter_module.EnergyMeter, "flush"),
        (meter_module.EnergyMeter, "stop"),
        (meter_module.EnergyMeter, "others"),
        (LedgerWriter, "_append"),
    ],
)
def test_a_run_ends_well_and_alike_whatever_fails_beside_it(
    owner: Any,
    name: str,
    values: dict[str, Any],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(owner, name, fail)
    folder = run(values)
    assert "failed: ZeroDivisionError: a stranger's library. The run goes on without it." in capsys.readouterr().out
    content = json.loads((folder / "run.json").read_text())
    assert content["hashes"] == {"model.safetensors": sha256_file(finished / "model.safetensors")}
    if owner is meter_module.EnergyMeter:
        assert content["energy_incomplete"]["reason"] == "ZeroDivisionError: a stranger's library"


def failing_after(times: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(10**6))

    def call(*given: Any, **named: Any) -> Any:
        return plain(*given, **named) if next(calls) < times else fail()

    return call


def test_an_account_is_incomplete_from_where_its_meter_failed(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(meter_module.EnergyMeter, "flush", failing_after(3, meter_module.EnergyMeter.flush))
        folder = run(values)
    assert "NOTHING IS MEASURED FROM HERE ON; the run's account is incomplete" in capsys.readouterr().out
    total, account = read_energy(folder)
    assert total is not None
    assert account is not None
    assert account.incomplete == (4, "ZeroDivisionError: a stranger's library")
    assert account.num_kills == 0
    assert 0 < account.total.energy_kwh <= total.energy_kwh
    assert account.seconds > 0
    text = write_energy_report(folder)
    assert "**Incomplete since step 4**: the meter failed (ZeroDivisionError" in text
    assert "| Energy | at least " in text
    assert json.loads((folder / "emissions.json").read_text())["incomplete"]["since_step"] == 4
    assert json.loads((folder / "run.json").read_text())["energy_incomplete"]["since_step"] == 4
    card = write_model_card(folder).read_text()
    assert "**Incomplete**: the meter failed at step 4." in card
    assert "at least " in card
    assert "ao menos " in card


def test_a_meter_that_fails_under_a_cap_on_energy_stops_resumably(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = {**values, "max_kwh": 10.0, "hard_stop": True}
    with monkeypatch.context() as patch:
        patch.setattr(meter_module.EnergyMeter, "flush", failing_after(2, meter_module.EnergyMeter.flush))
        with pytest.raises(
            StoppedResumable, match=r"the energy meter has failed, so nobody counts what max_kwh caps .*; saved .*"
        ):
            run(capped)
    folder = Path(values["output_dir"])
    assert list(folder.glob("checkpoint-*/complete.json"))
    assert not (folder / "run.json").exists()
    run(capped)
    assert (folder / "run.json").exists()
    with monkeypatch.context() as patch:  # hours need no meter
        patch.setattr(meter_module.EnergyMeter, "flush", fail)
        run({**values, "max_hours": 10.0, "hard_stop": True, "output_dir": str(folder.parent / "hours")})


def test_a_stage_goes_on_without_its_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module.EnergyMeter, "start", fail)
    with StageMeter(tmp_path, GridSettings()) as energy:
        energy.tick()
    account = read_ledger(tmp_path)
    assert account is not None
    assert account.incomplete == (0, "ZeroDivisionError: a stranger's library")
    assert account.total.seconds > 0


# Records

LINES = [b'{"step": %d, "tokens": %d, "loss": 3.0}' % (step, 10 * step) for step in range(1, 7)]
DAMAGES = [
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"7",
    b"{}",
    b'{"step": "3"}',
    b'{"step": 3, "loss": "x"}',
    b'{"step": 3, "lo',
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_goes_on_over_a_damaged_record_and_others_refuse_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*LINES[:2], damage, *LINES[3:]]) + b"\n")
    assert [record["step"] for record in read_jsonl(path)] == [1, 2, 4, 5, 6]
    rewind_jsonl(path, 4)
    assert path.read_bytes() == b"\n".join([*LINES[:2], damage, LINES[3]]) + b"\n"
    plot_loss(path, tmp_path / "loss.png")
    with pytest.raises(
        InputError, match=r"metrics.jsonl(:|,) line 3\b.*Restore the file from a copy, or remove that line"
    ):
        read_metrics(path)


def test_a_record_behind_a_torn_one_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES[0] + b"\n" + LINES[1][:9])
    append_jsonl(path, {"step": 3})
    assert [record["step"] for record in read_jsonl(path)] == [1, 3]
    with pytest.raises(InputError, match="line 2 is damaged"):
        read_metrics(path)


def test_gaps_are_found_between_records_and_before_the_first() -> None:
    points = [(10.0 * step, 3.0) for step in (1, 2, 3, 4)]
    assert gaps_of(points) == gaps_of([]) == gaps_of(points[:1]) == []
    assert gaps_of(points[:1] + points[2:]) == [(10.0, 30.0)] or gaps_of([*points[:2], *points[3:], (50.0, 1.0)]) == [
        (20.0, 40.0)
    ]
    assert gaps_of([(tokens + 100, loss) for tokens, loss in points]) == [(0.0, 110.0)]


def test_a_run_that_lost_its_records_ends_well_and_is_known_as_complete(
    values: dict[str, Any], finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(values["output_dir"])
    with monkeypatch.context() as patch:
        patch.setattr("teenytinyllama.training.pretrain.close_run_folder", fail)
        with pytest.raises(ZeroDivisionError):
            run(values)
    (folder / "metrics.jsonl").unlink()
    (folder / "ledger.jsonl").write_bytes(b"\xff\xfe\n" + (folder / "ledger.jsonl").read_bytes())
    run(values)
    assert sha256_file(folder / "model.safetensors") == sha256_file(finished / "model.safetensors")
    capsys.readouterr()
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    run(values)
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(InputError, match="ledger.jsonl: line 1 is damaged"):
        write_model_card(folder)


# One rule for what is told of energy


def change(path: Path, line: int, edit: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines()
    lines[line] = edit(lines[line])
    path.write_text("\n".join(lines) + "\n")


def set_column(path: Path, line: int, column: str, value: str) -> None:
    names = path.read_text().splitlines()[0].split(",")

    def edit(text: str) -> str:
        cells = text.split(",")
        cells[names.index(column)] = value
        return ",".join(cells)

    change(path, line, edit)


EMISSION_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "negative": (lambda p: set_column(p, -1, "ram_energy", "-1"), "ram_energy=-1, which must be a finite number"),
    "infinite": (lambda p: set_column(p, 2, "cpu_energy", "inf"), "line 3 has cpu_energy=inf"),
    "nan": (lambda p: set_column(p, 2, "emissions", "nan"), "line 3 has emissions=nan"),
    "text": (lambda p: set_column(p, 2, "duration", "x"), "line 3 has duration='x', which is no number"),
    "falls": (lambda p: set_column(p, -1, "duration", "0.0"), "duration=0.0 after .* such sums never fall"),
    "short": (lambda p: change(p, 2, lambda text: text[:40]), "line 3 has . columns and not"),
    "head": (lambda p: change(p, 2, lambda text: p.read_text().splitlines()[0]), "line 3 is a second row of names"),
    "torn": (lambda p: p.write_bytes(p.read_bytes()[:-9]) and None, "is cut off within its last line"),
    "shorter": (lambda p: p.write_text("\n".join(p.read_text().splitlines()[:3]) + "\n") and None, "adds up to"),
    "missing": (lambda p: p.unlink(), "is missing or empty, and ledger.jsonl has its energy"),
}
LEDGER_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "bytes": (lambda p: p.write_bytes(b"\xff\x00\n" + p.read_bytes()) and None, "line 1 is damaged"),
    "deep": (lambda p: p.write_bytes(b"[" * 99999 + b"\n" + p.read_bytes()) and None, "line 1 is damaged"),
    "list": (lambda p: change(p, 1, lambda text: "[]"), "line 2 is damaged"),
    "negative": (lambda p: change(p, 1, lambda t: json.dumps({**json.loads(t), "gpu_kwh": -1})), "gpu_kwh=-1 is no"),
    "infinite": (
        lambda p: change(p, 1, lambda t: json.dumps({**json.loads(t), "ram_kwh": 1e999})),
        "ram_kwh=inf is no",
    ),
    "falls": (lambda p: change(p, -1, lambda t: json.dumps({**json.loads(t), "seconds": 0})), "seconds falls from"),
    "no start": (
        lambda p: p.write_text("\n".join(p.read_text().splitlines()[1:]) + "\n") and None,
        "line 1 is damaged",
    ),
}
FAULTS = [("emissions.csv", *found) for found in EMISSION_FAULTS.values()]
FAULTS += [("ledger.jsonl", *found) for found in LEDGER_FAULTS.values()]


@pytest.mark.parametrize(("name", "damage", "message"), FAULTS)
def test_energy_that_cannot_be_true_is_refused_alike_by_all(
    name: str, damage: Callable[[Path], None], message: str, finished: Path, tmp_path: Path
) -> None:
    import shutil

    from teenytinyllama.publishing.contents import main_upload

    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(folder / name)
    for verb in (write_energy_report, write_model_card, lambda run: main_upload(run, "", [])):
        with pytest.raises(InputError, match=message):
            verb(folder)
    assert not (folder / "emissions.json").exists()


def test_lines_that_end_as_on_windows_are_read(finished: Path, tmp_path: Path) -> None:
    for name in ("emissions.csv", "ledger.jsonl"):
        content = (finished / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        (tmp_path / name).write_bytes(content)
    assert read_energy(tmp_path)[0] == read_energy(finished)[0]


@pytest.mark.parametrize(
    ("hashes", "message"),
    [
        ({}, "run.json: hashes has no sha256 of model.safetensors"),
        ({"other.safetensors": "0" * 64}, "has no sha256 of model.safetensors"),
        ({"model.safetensors": 7}, "model.safetensors=7 is no sha256"),
        ({"model.safetensors": "xyz"}, "model.safetensors='xyz' is no sha256"),
        ({"model.safetensors": "0" * 64}, "has changed since the run ended"),
        ({"model.safetensors": None, "../x": "0" * 64}, "is no sha256|'../x' is no file of weights"),
    ],
)
def test_weights_that_nobody_can_verify_are_not_published(
    hashes: dict[str, Any], message: str, finished: Path, tmp_path: Path
) -> None:
    import shutil

    from teenytinyllama.publishing.contents import main_upload

    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, "hashes": hashes}))
    with pytest.raises(InputError, match=message):
        main_upload(folder, "", [])
