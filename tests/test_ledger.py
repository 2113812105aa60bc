"""The ledger of energy and the report that is made of it."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_pretrain import make_values, run

from teenytinyllama import cli
from teenytinyllama.checks import InputError
from teenytinyllama.energy.emissions import GridSettings, grid_intensity, read_emissions
from teenytinyllama.energy.ledger import Account, LedgerWriter, read_ledger, read_starts
from teenytinyllama.energy.meter import EnergyReading
from teenytinyllama.energy.recorder import Recorder, StageMeter, add_speed_test
from teenytinyllama.publishing.energy_report import CAR_GRAMS_PER_KM, energy_report, write_energy_report
from teenytinyllama.stage_folder import LEDGER_NAME
from teenytinyllama.training.metrics import read_jsonl

REPOSITORY = Path(__file__).resolve().parent.parent


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
    monkeypatch.setattr("teenytinyllama.energy.ledger.time.time", lambda: next(times))
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
    with pytest.raises(InputError, match=r"line 2 is damaged \('step' is missing\)"):
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
        names = [type(callback).__name__ for callback in built.trainer.callback_handler.callbacks]
        # samples count as evaluation, and what is reported has been flushed
        places = [names.index(name) for name in ("SampleCallback", "EnergyCallback", "MetricsCallback")]
        assert places == sorted(places)
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
    # training, evaluation with its samples, and saving are told apart, and nothing is left over
    assert set(account.phases_kwh) == {"training", "evaluation", "saving"}
    assert sum(account.phases_kwh.values()) == pytest.approx(total.energy_kwh, rel=1e-6)
    rows = [json.loads(line) for line in (folder / LEDGER_NAME).read_text().splitlines()]
    assert [(row["step"], row["phase"]) for row in rows if row["event"] != "start"] == [
        (0, "evaluation"), (4, "training"), (4, "evaluation"), (4, "saving"), (7, "training"),  # killed in step 8
        (8, "training"), (8, "evaluation"), (8, "saving"), (8, "evaluation"), (8, "saving"),
    ]  # fmt: skip
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
    assert report["usd"] == pytest.approx(total.duration_seconds / 100 + report["starting_hours"] * 36.0)
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
        "| evaluation, samples included |",
        "No GPU was seen, so there is nothing to be cross-checked.",
        "without cooling and losses of the building (PUE 1.0)",
    ):
        assert part in text


def copy_of(folder: Path, target: Path, run_ids: tuple[str, str] | None = None) -> Path:
    """Copy a run's energy files; the pair names a run_id and what to write in its place."""
    target.mkdir()
    for name in ("emissions.csv", LEDGER_NAME, "metrics.jsonl"):
        text = (folder / name).read_text()
        (target / name).write_text(text.replace(*run_ids) if run_ids else text)
    return target


def test_the_verb(interrupted: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(interrupted[0])
    total = read_emissions(interrupted[0] / "emissions.csv")
    assert total is not None
    first, second = total.run_kwh
    other = copy_of(interrupted[0], tmp_path / "other", (first, "x"))
    for name in ("emissions.csv", LEDGER_NAME):
        (other / name).write_text((other / name).read_text().replace(second, "y"))
    assert cli.main(["emissions", folder, str(other), "--elsewhere", "FRA"]) == 0
    said = capsys.readouterr().out
    assert "## All of them" in said
    assert "| FRA |" in said
    assert "DEU" not in said
    assert "The run is not finished" in said
    report = energy_report(interrupted[0], None, ("BRA",))
    assert f"| all | {2 * report['energy_kwh']:.4g} |" in said
    for arguments, message in (
        ([], "ttl emissions: needs the folders of one or more runs"),
        ([folder, folder], "one is named twice"),
        ([folder, "--price", "x"], "price='x': wrong type (str). It must be a number"),
        ([folder, "--price=-1"], "price=-1.0: must be 0 or more"),
        ([folder, "--elsewhere", "BRASIL"], "elsewhere=BRASIL: unknown country"),
        ([folder, "--elsewhere", ","], "elsewhere: empty"),
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path)], "its energy was not measured"),
    ):
        assert cli.main(["emissions", *arguments]) == 2
        assert message in capsys.readouterr().err, message


def test_a_start_that_two_folders_hold_is_named_and_not_summed(
    interrupted: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted[0]
    total = read_emissions(folder / "emissions.csv")
    assert total is not None
    first, second = total.run_kwh
    whole = copy_of(folder, tmp_path / "whole")
    part = copy_of(folder, tmp_path / "part", (first, "another start"))
    for other, run_id in ((whole, first), (part, second)):
        assert cli.main(["emissions", str(folder), str(other)]) == 2
        said = capsys.readouterr().err
        assert f"RUN={folder}, {other}: both hold the start {run_id}, so one is a copy of the other" in said
        assert not (other / "emissions.json").exists()


def test_files_that_contradict_each_other_are_named_and_not_summed(
    interrupted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("emissions.csv", LEDGER_NAME):
        (tmp_path / name).write_bytes((interrupted[0] / name).read_bytes())
    lines = (tmp_path / LEDGER_NAME).read_text().splitlines()
    (tmp_path / LEDGER_NAME).write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(InputError, match=r"emissions.csv adds up to \S+ kWh and ledger.jsonl to \S+ One of the two"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("kept", [-30, 5])
def test_a_row_torn_by_a_full_disk_does_not_take_the_next_one_with_it(tmp_path: Path, kept: int) -> None:
    """The last row, or the very first, of either file."""

    def start(steps: range) -> None:
        recorder = Recorder(tmp_path, GridSettings())
        for step in steps:
            time.sleep(0.1)
            recorder.write(step, "training", last=step == steps[-1])

    start(range(1, 4))
    for path in (tmp_path / LEDGER_NAME, tmp_path / "emissions.csv"):
        path.write_bytes(path.read_bytes()[:kept])
    start(range(4, 6))
    found = read_starts(tmp_path / LEDGER_NAME)
    assert [begun.points[-1][0] for begun in found] == ([2, 5] if kept < 0 else [5])
    total = read_emissions(tmp_path / "emissions.csv")
    assert total is not None
    assert total.energy_kwh == pytest.approx(sum(begun.total.energy_kwh for begun in found), rel=1e-6)


def test_a_kill_between_the_two_files_is_no_contradiction(tmp_path: Path) -> None:
    for ended in (False, True):
        folder = tmp_path / str(ended)
        folder.mkdir()
        recorder = Recorder(folder, GridSettings())
        for step in (1, 2, 3):
            time.sleep(0.2)
            recorder.write(step, "training", last=ended and step == 3)
        lines = (folder / LEDGER_NAME).read_text().splitlines()
        assert json.loads(lines[-1])["event"] == ("end" if ended else "reading")
        kept = [*lines[:-2], lines[-1]] if ended else lines[:-1]
        if ended:
            kept[-1] = json.dumps({**json.loads(lines[-1]), "energy_kwh": json.loads(lines[1])["energy_kwh"]})
        (folder / LEDGER_NAME).write_text("\n".join(kept) + "\n")
        if not ended:
            account = read_ledger(folder)
            recorder.write(3, last=True)  # the killed one would not run on
    assert account is not None
    assert account.num_kills == 1
    assert account.starts[0].points[-1][0] == 2
    with pytest.raises(InputError, match="One of the two was changed"):
        read_ledger(tmp_path / "True")


def test_three_starts_add_up_also_when_one_is_killed(tmp_path: Path) -> None:
    """By the real meter: the sum over restarts is that of codecarbon's parts, to a thousandth."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from teenytinyllama.energy.emissions import GridSettings; from teenytinyllama.energy.recorder import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]), GridSettings(), first_step=10)\n"
        "for step in (15, 20, 25): time.sleep(0.3); recorder.write(step, 'training')\n"
        "print('written', flush=True); time.sleep(60)\n"
    )
    first = Recorder(tmp_path, GridSettings())
    time.sleep(0.3)
    first.write(10, "training")
    time.sleep(0.3)
    first.write(10, "saving", last=True)
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert killed.stdout is not None
    assert any(line == "written\n" for line in killed.stdout)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    third = Recorder(tmp_path, GridSettings(), first_step=20)
    time.sleep(0.5)
    third.write(30, "training", last=True)
    with (tmp_path / "emissions.csv").open() as file:
        parts = {row["run_id"]: row for row in csv.DictReader(file)}
    assert len(parts) == 3
    assert all(float(row["energy_consumed"]) > 0 for row in parts.values())
    account = read_ledger(tmp_path)
    assert account is not None
    assert [start.run_id for start in account.starts] == list(parts)
    assert [start.ended for start in account.starts] == [True, False, True]
    for ledger, csv_total in ((account.total.energy_kwh, "energy_consumed"), (account.total.emissions_kg, "emissions"),
                              (account.total.cpu_kwh, "cpu_energy")):  # fmt: skip
        assert ledger == pytest.approx(sum(float(row[csv_total]) for row in parts.values()), rel=1e-3)
    assert account.repeated_kwh == pytest.approx(account.starts[1].total.energy_kwh - account.starts[1].kwh_until(20))
    assert sum(account.phases_kwh.values()) == pytest.approx(account.total.energy_kwh, rel=1e-9)


def test_packing_and_the_tokenizer_are_measured_too(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from teenytinyllama.data.pack import PackConfig, pack
    from teenytinyllama.tokenizer.train import TokenizerConfig, build_tokenizer

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
    from teenytinyllama.energy import ledger

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


def test_a_region_and_a_building_stand_in_the_report(tmp_path: Path, corpus_folder: Path) -> None:
    from teenytinyllama.tokenizer.train import TokenizerConfig, build_tokenizer

    where = {"country_iso_code": "USA", "region": "California", "pue": 1.25}
    config = TokenizerConfig(inputs=[str(corpus_folder)], vocab_size=500, output_dir=str(tmp_path / "a"), **where)
    folder = build_tokenizer(config)
    text = write_energy_report(folder)
    report = json.loads((folder / "emissions.json").read_text())
    assert (report["country_iso_code"], report["region"], report["pue"]) == ("USA", "california", 1.25)
    assert report["machine_kwh"] == pytest.approx(report["energy_kwh"] / 1.25)
    assert report["grams_per_kwh"] == pytest.approx(grid_intensity("USA", "California"), rel=1e-3)
    assert "g/kWh (USA (california))" in text
    assert "times a PUE of 1.25 for cooling and losses of the building" in text
    # another place is the same tokenizer
    again = TokenizerConfig(inputs=[str(corpus_folder)], vocab_size=500, output_dir=str(tmp_path / "a"))
    assert build_tokenizer(again) == folder


def test_what_a_speed_test_consumed_is_added_to_a_run(tmp_path: Path) -> None:
    """Of a run that was stopped at step 500 and is resumed there under a cap: nothing was done again."""
    run, tested = tmp_path / "run", tmp_path / "tested"
    for folder, steps in ((run, [0, 500]), (tested, [0, 8])):
        folder.mkdir()
        recorder = Recorder(folder, GridSettings(), first_step=steps[0])
        time.sleep(0.1)
        recorder.write(steps[1], "training", last=True)
    own, test = (account_of(folder).total.energy_kwh for folder in (run, tested))
    with (tested / "emissions.csv").open("a") as file, (tested / LEDGER_NAME).open("a") as rows:
        file.write("torn,by a ki")
        rows.write('{"torn": "by')
    add_speed_test(tested, run)
    once = account_of(run)  # which compares it with emissions.csv
    add_speed_test(tested, run)  # as after a kill before the test's folder was gone
    assert account_of(run) == once
    recorder = Recorder(run, GridSettings(), first_step=500)
    recorder.write(600, "training", last=True)
    account = account_of(run)
    assert account.speed_test_kwh == account.phases_kwh["speed test"] == pytest.approx(test)
    assert account.repeated_kwh == 0
    assert own < account.useful_kwh == pytest.approx(account.total.energy_kwh - test)
    text = write_energy_report(run)
    assert "| the speed test before it | " in text
    assert "in 2 starts" in text  # of three in the account
    add_speed_test(tmp_path / "nothing", run)
    assert account_of(run) == account


def account_of(folder: Path) -> Account:
    account = read_ledger(folder)
    assert account is not None
    return account


def test_a_speed_test_is_not_added_to_a_damaged_account(tmp_path: Path) -> None:
    write_start(tmp_path, 0, [(5, 1.0)], ended=True)
    source = tmp_path / "tested"
    source.mkdir()
    write_start(source, 0, [(5, 1.0)], ended=True)
    path = tmp_path / LEDGER_NAME
    damaged = "damaged\n" + path.read_text()
    path.write_text(damaged)
    with pytest.raises(InputError, match=r"ledger.jsonl: line 1 is damaged"):
        add_speed_test(source, tmp_path)
    assert path.read_text() == damaged


def test_rows_of_another_codecarbon_are_not_mixed(tmp_path: Path) -> None:
    run, tested = tmp_path / "run", tmp_path / "tested"
    head = "run_id,energy_consumed,cpu_energy,gpu_energy,ram_energy,emissions,duration,country_iso_code"
    for folder, name, more in ((run, "a", ""), (tested, "b", ",pue")):
        folder.mkdir()
        (folder / "emissions.csv").write_text(f"{head}{more}\n{name},1,0,1,0,2,10,BRA{',1.0' if more else ''}\n")
    (run / "emissions.csv.bak").write_text(f"{head}\nc,1,0,1,0,2,10,BRA\n")
    add_speed_test(tested, run)
    assert {path.name for path in run.iterdir()} == {"emissions.csv", "emissions.csv.bak", "emissions.csv.bak_1"}
    total = read_emissions(run / "emissions.csv")
    assert total is not None
    assert (total.energy_kwh, total.num_starts) == (3, 3)


@pytest.mark.parametrize(
    ("starts", "gpu_hours"),
    [
        ([(0, 1, 3600.0)], 1.0),
        ([(0, 2, 3600.0)], 2.0),
        ([(0, 8, 3600.0)], 8.0),
        ([(0, 8, 3600.0), (1, 8, 3600.0)], 16.0),  # two machines
        ([(0, 8, 3600.0), (0, 2, 1800.0)], 9.0),  # resumed on fewer
    ],
)
def test_money_is_price_times_gpus_times_hours_of_each_start(
    starts: list[tuple[int, int, float]], gpu_hours: float, tmp_path: Path
) -> None:
    for machine, num_gpus, seconds in starts:
        about = {"methods": [], "warnings": [], "num_gpus": num_gpus, "starting_seconds": 360.0}
        LedgerWriter(tmp_path, machine, 0, about).write(1, EnergyReading(1, 1, 0, 0, 0.1, seconds), last=True)
    account = read_ledger(tmp_path)
    assert account is not None
    started = sum(0.1 * num_gpus for _, num_gpus, _ in starts)  # paid before the meter ran
    assert account.paid_gpu_hours == pytest.approx(gpu_hours + started)


def test_a_run_s_own_price_counts_and_its_old_meaning_is_said(
    interrupted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = copy_of(interrupted[0], tmp_path / "run")
    assert energy_report(folder, None, ("BRA",))["usd"] is None
    (folder / "config.yaml").write_text("price: 36.0\n")
    report = energy_report(folder, None, ("BRA",))
    assert report["usd"] == pytest.approx(36 * report["gpu_hours"])
    assert report["price_source"] == "price in the run's config"
    assert energy_report(folder, 72.0, ("BRA",))["usd"] == pytest.approx(2 * report["usd"])
    rows = [json.loads(line) for line in (folder / LEDGER_NAME).read_text().splitlines()]
    older = [{key: value for key, value in row.items() if key not in ("num_gpus", "starting_seconds")} for row in rows]
    (folder / LEDGER_NAME).write_text("".join(json.dumps(row) + "\n" for row in older))
    report = energy_report(folder, None, ("BRA",))
    assert report["usd"] == pytest.approx(36 * report["hours"])
    assert "that of all machines together" in report["price_source"]
    training = {"world_size": 8, "hardware": "NVIDIA H100 80GB HBM3", "peak_gpu_memory_gb": 9.0}
    (folder / "run.json").write_text(json.dumps({"training": training}))
    assert energy_report(folder, 36.0, ("BRA",))["usd"] == pytest.approx(8 * 36 * report["hours"])
