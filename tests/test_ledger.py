"""The ledger of energy and the report that is made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_pretrain import make_values, run

from teenytinyllama import cli
from teenytinyllama.checks import InputError
from teenytinyllama.emissions import read_emissions
from teenytinyllama.grid import GridSettings, grid_intensity
from teenytinyllama.ledger import LEDGER_NAME, LedgerWriter, read_ledger
from teenytinyllama.meter import EnergyReading
from teenytinyllama.publishing.energy import CAR_GRAMS_PER_KM, energy_report, write_energy_report
from teenytinyllama.training.metrics import read_jsonl


def reading(kwh: float) -> EnergyReading:
    return EnergyReading(kwh, 0.5 * kwh, 0.4 * kwh, 0.1 * kwh, 0.1 * kwh, 3600 * kwh)


def write_start(folder: Path, first_step: int, points: list[tuple[int, float]], ended: bool, machine: int = 0) -> None:
    writer = LedgerWriter(folder, machine, first_step, {"methods": ["RAM()"], "warnings": ["a guess"]})
    for number, (step, kwh) in enumerate(points):
        writer.write(step, reading(kwh), last=ended and number == len(points) - 1)


def test_repeated_work_is_told_from_useful_work_and_both_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1, 1000))
    monkeypatch.setattr("teenytinyllama.ledger.time.time", lambda: next(times))
    write_start(tmp_path, 0, [(40, 4.0), (55, 5.5)], ended=False)  # killed; its checkpoint is of step 40
    write_start(tmp_path, 40, [(50, 1.0), (60, 2.0)], ended=True)  # stopped; its checkpoint of step 60 is lost
    write_start(tmp_path, 45, [(80, 3.5)], ended=True)
    account = read_ledger(tmp_path)
    assert account is not None
    assert account.total.energy_kwh == pytest.approx(11.0)
    # the first: 40 to 55; the second: 45 (between its rows) to 60
    assert account.repeated_kwh == pytest.approx(1.5 + 1.5)
    assert account.useful_kwh + account.repeated_kwh == pytest.approx(account.total.energy_kwh)
    assert account.num_kills == 1
    assert account.seconds == pytest.approx(11 * 3600)
    assert [start.ended for start in account.starts] == [False, True, True]


def test_machines_are_added_and_ranks_on_one_are_not(tmp_path: Path) -> None:
    write_start(tmp_path, 0, [(10, 1.0)], ended=True)
    write_start(tmp_path, 0, [(10, 1.2)], ended=True, machine=1)
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.jsonl", "ledger-1.jsonl"}
    account = read_ledger(tmp_path)
    assert account is not None
    assert account.total.energy_kwh == pytest.approx(2.2)
    assert account.repeated_kwh == 0
    assert account.seconds == pytest.approx(3600)


def test_a_line_cut_off_by_a_kill_is_left_out_and_other_damage_is_refused(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None
    write_start(tmp_path, 0, [(5, 1.0), (10, 2.0)], ended=False)
    path = tmp_path / LEDGER_NAME
    whole = path.read_text()
    path.write_text(whole[:-20])
    account = read_ledger(tmp_path)
    assert account is not None
    assert account.total.energy_kwh == pytest.approx(1.0)
    path.write_text(whole.replace('"step": 5', '"stop": 5'))
    with pytest.raises(InputError, match=r"a row lacks what it must have \(KeyError\('step'\)\)"):
        read_ledger(tmp_path)
    path.write_text("x\n" + whole)
    with pytest.raises(InputError, match=r"ledger.jsonl: line 1 is damaged"):
        read_ledger(tmp_path)


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> tuple[Path, dict[str, Any]]:
    """A run that failed at step 7 and went on from its checkpoint of step 4."""
    from teenytinyllama.training import pretrain as module

    values = make_values(tmp_path_factory.mktemp("interrupted"), packed_folder, tokenizer_folder)
    plain = module.build_run

    class Failing:
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise ZeroDivisionError

    def build(*arguments: Any) -> Any:
        from transformers import TrainerCallback

        built = plain(*arguments)
        built.trainer.add_callback(type("Failing", (Failing, TrainerCallback), {})())
        return built

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_run", build)
        with pytest.raises(ZeroDivisionError):
            run(values)
    return run(values), values


def test_a_real_run_keeps_what_it_repeated(interrupted: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = interrupted
    account = read_ledger(folder)
    total = read_emissions(folder / "emissions.csv")
    assert account is not None
    assert total is not None
    assert [start.first_step for start in account.starts] == [0, 4]
    assert account.starts[0].points[-1][0] == 7
    assert account.total.energy_kwh == pytest.approx(total.energy_kwh, rel=1e-6)
    assert account.repeated_kwh >= 0  # three steps of milliseconds: the meter may not have seen them
    assert account.useful_kwh + account.repeated_kwh == pytest.approx(total.energy_kwh, rel=1e-9)
    # metrics went back, energy did not
    steps = [record["step"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, 9))
    assert read_jsonl(folder / "metrics.jsonl")[-1]["kwh"] > account.starts[0].total.energy_kwh


def test_the_report_says_what_was_consumed_and_bought(interrupted: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = interrupted
    text = write_energy_report(folder, usd_per_hour=36.0)
    report = json.loads((folder / "emissions.json").read_text())
    assert (folder / "emissions.md").read_text() == text
    assert (folder / "emissions.png").stat().st_size > 10_000
    total = read_emissions(folder / "emissions.csv")
    assert total is not None
    assert report["energy_kwh"] == total.energy_kwh
    assert report["usd"] == pytest.approx(total.duration_seconds / 100)
    assert report["car_km"] == pytest.approx(1000 * total.emissions_kg / CAR_GRAMS_PER_KM)
    assert report["elsewhere_kg"]["PRT"] == pytest.approx(total.energy_kwh * grid_intensity("PRT") / 1000)
    assert report["elsewhere_kg"]["BRA"] == pytest.approx(total.emissions_kg, rel=0.01)
    assert [score["step"] for score in report["scores"]][:2] == [0, 4]
    assert report["scores"][-1]["bits_per_byte"] < report["scores"][0]["bits_per_byte"]
    assert report["ledger"]["num_kills"] == 0
    assert any(method.startswith("CPU") for method in report["ledger"]["methods"])
    assert any("memory's energy is a model" in warning for warning in report["ledger"]["warnings"])
    for part in (
        "## Useful and repeated work",
        "| steps done again after a stop |",
        "| PRT |",
        "400 g a mile",
        "USD at 36.0",
    ):
        assert part in text


def test_the_verb(interrupted: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(interrupted[0])
    (tmp_path / "other").mkdir()
    for name in ("emissions.csv", LEDGER_NAME, "metrics.jsonl"):
        (tmp_path / "other" / name).write_bytes((interrupted[0] / name).read_bytes())
    assert cli.main(["emissions", folder, str(tmp_path / "other"), "--elsewhere", "FRA"]) == 0
    said = capsys.readouterr().out
    assert "## All of them" in said
    assert "| FRA |" in said
    assert "DEU" not in said
    assert "The run is not finished" in said
    report = energy_report(interrupted[0], None, ("BRA",))
    assert f"| all | {2 * report['energy_kwh']:.4g} |" in said
    for arguments, message in (
        ([], "takes the folders of one or more runs"),
        ([folder, folder], "one is named twice"),
        ([folder, "--price", "x"], "price=x: must be a number"),
        ([folder, "--price=-1"], "price=-1.0: must be 0 or more"),
        ([folder, "--elsewhere", "BRASIL"], "elsewhere=BRASIL: unknown country"),
        ([folder, "--elsewhere", ","], "elsewhere: empty"),
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path)], "its energy was not measured"),
    ):
        assert cli.main(["emissions", *arguments]) == 2
        assert message in capsys.readouterr().err, message


def test_files_that_contradict_each_other_are_named_and_not_summed(
    interrupted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("emissions.csv", LEDGER_NAME):
        (tmp_path / name).write_bytes((interrupted[0] / name).read_bytes())
    lines = (tmp_path / LEDGER_NAME).read_text().splitlines()
    (tmp_path / LEDGER_NAME).write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(InputError, match=r"emissions.csv adds up to \S+ kWh and ledger.jsonl to \S+ One of the two"):
        read_ledger(tmp_path)


def test_packing_and_the_tokenizer_are_measured_too(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from teenytinyllama.data.packing import PackConfig, pack
    from teenytinyllama.data.vocabulary import TokenizerConfig, build_tokenizer

    where = {"inputs": [str(corpus_folder)], "country_iso_code": "PRT"}
    tokenizer = build_tokenizer(TokenizerConfig(**where, vocab_size=500, output_dir=str(tmp_path / "tokenizer")))
    packed = pack(PackConfig(**where, tokenizer=str(tokenizer), context=32, output_dir=str(tmp_path / "packed")))
    for folder in (tokenizer, packed):
        account = read_ledger(folder)
        total = read_emissions(folder / "emissions.csv")
        assert account is not None
        assert total is not None
        assert total.country_iso_code == "PRT"
        assert account.repeated_kwh == 0
        assert account.num_kills == 0
        assert "The run has no" not in write_energy_report(folder)
    assert cli.main(["emissions", str(tokenizer), str(packed)]) == 0
    assert "## All of them" in capsys.readouterr().out
    # another country is the same tokenizer and the same rows
    again = TokenizerConfig(**{**where, "country_iso_code": "BRA"}, vocab_size=500, output_dir=str(tokenizer))
    assert build_tokenizer(again) == tokenizer
    with pytest.raises(InputError, match="country_iso_code=XXX: unknown country"):
        pack(
            PackConfig(**{**where, "country_iso_code": "XXX"}, tokenizer=str(tokenizer), output_dir=str(tmp_path / "x"))
        )
    assert not (tmp_path / "x").exists()


def test_a_stage_that_ticks_leaves_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from teenytinyllama import ledger
    from teenytinyllama.recorder import StageMeter

    monkeypatch.setattr(ledger, "FLUSH_SECONDS", 0)
    with StageMeter(tmp_path, GridSettings()) as meter:
        meter.tick()
        killed = read_ledger(tmp_path)
        assert killed is not None
        assert killed.num_kills == 1
    account = read_ledger(tmp_path)
    assert account is not None
    assert len(account.starts[0].points) == 2
    assert account.num_kills == 0
