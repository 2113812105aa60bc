import csv
import json
import time
from pathlib import Path

import pytest
from card_runs import energy_row, write_emissions, write_rows

from teenytinyllama.checks import InputError
from teenytinyllama.energy.emissions import GridSettings, grid_intensity, read_emissions
from teenytinyllama.energy.meter import EnergyMeter
from teenytinyllama.publishing.energy_report import write_energy_report


def test_the_meter_adds_up_over_starts(tmp_path: Path) -> None:
    totals = []
    for _ in range(2):
        meter = EnergyMeter(tmp_path, GridSettings())
        meter.start()
        time.sleep(0.3)
        meter.flush()
        time.sleep(0.2)
        meter.stop()
        totals.append(read_emissions(tmp_path / "emissions.csv"))
    assert 0 < totals[0].energy_kwh < totals[1].energy_kwh
    with (tmp_path / "emissions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["run_id"] for row in rows}) == 2
    assert len(rows) == 4  # a flush and a stop of each
    total = read_emissions(tmp_path / "emissions.csv")
    assert total is not None
    assert total.num_starts == 2
    assert total.energy_kwh == pytest.approx(sum(float(row["energy_consumed"]) for row in (rows[1], rows[3])))
    assert total.energy_kwh == pytest.approx(total.cpu_kwh + total.gpu_kwh + total.ram_kwh)
    assert total.emissions_kg == pytest.approx(total.energy_kwh * grid_intensity("BRA") / 1000, rel=0.01)
    assert total.country_iso_code == "BRA"


def test_machines_are_added_and_their_time_is_not(tmp_path: Path) -> None:
    columns = "run_id,energy_consumed,cpu_energy,gpu_energy,ram_energy,emissions,duration,country_iso_code"
    for name, rows in {"emissions.csv": ["a,1,0,1,0,2,10,BRA", "a,2,0,2,0,4,20,BRA", "b,1,0,1,0,2,5,BRA"],
                       "emissions-1.csv": ["c,3,0,3,0,6,25,BRA"], "emissions-1.csv.bak": ["d,1,0,1,0,2,7,BRA"],
                       "emissions-2.csv": ["e,4,0,4,0,8,25,BRA"]}.items():  # fmt: skip
        (tmp_path / name).write_text("\n".join([columns, *rows]) + "\n")
    total = read_emissions(tmp_path / "emissions.csv")
    assert total is not None
    assert (total.energy_kwh, total.emissions_kg) == (11, 22)
    assert (total.duration_seconds, total.num_starts, total.num_machines) == (25, 2, 3)


def test_no_file_is_no_measurement_and_a_foreign_file_is_refused(tmp_path: Path) -> None:
    assert read_emissions(tmp_path / "emissions.csv") is None
    (tmp_path / "emissions.csv").write_text("")
    assert read_emissions(tmp_path / "emissions.csv") is None
    (tmp_path / "emissions.csv").write_text("run_id,energy\na,1\n")
    with pytest.raises(InputError, match="not a codecarbon file"):
        read_emissions(tmp_path / "emissions.csv")


def test_countries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grid_intensity("BRA") == pytest.approx(98.3, abs=0.1)  # codecarbon's table, 2023
    assert grid_intensity("PRT") > grid_intensity("FRA")
    with pytest.raises(InputError, match="country_iso_code=PTR: unknown country"):
        grid_intensity("PTR")


@pytest.mark.parametrize(
    ("country", "region", "grams"),
    [
        # codecarbon 3.3.2: 394.769 lbs/MWh (EPA eGRID2023), a mix of 8.6 % gas and 0.1 % petroleum, the zone's own figure
        ("USA", "California", 394.769 * 0.45359237),
        ("CAN", "ontario", 8.6 * 7.438415916 + 0.1 * 8.166885263),
        ("SWE", "SE1", 25.9),
        ("CHN", "Beijing", 555.4),
    ],
)
def test_regions_are_as_the_tracker_has_them(country: str, region: str, grams: float, tmp_path: Path) -> None:
    assert grid_intensity(country, region) == pytest.approx(grams, rel=0.02)
    assert grid_intensity(country, region) != pytest.approx(grid_intensity(country), rel=0.02)
    meter = EnergyMeter(tmp_path, GridSettings(country_iso_code=country, region=region))
    meter.start()
    time.sleep(0.2)
    meter.stop()
    reading = meter.reading()
    assert 1000 * reading.emissions_kg / reading.energy_kwh == pytest.approx(grid_intensity(country, region), rel=1e-3)
    total = read_emissions(tmp_path / "emissions.csv")
    assert total is not None
    assert (total.country_iso_code, total.region) == (country, region.lower())


def test_the_building_s_share_is_in_every_figure_and_told_apart(tmp_path: Path) -> None:
    seconds = []
    for pue in (1.0, 3.0):
        meter = EnergyMeter(tmp_path, GridSettings(pue=pue))
        meter.start()
        time.sleep(0.5)
        meter.stop()
        seconds.append(meter.reading())
    total = read_emissions(tmp_path / "emissions.csv")
    assert total is not None
    first, second = seconds
    assert total.energy_kwh == pytest.approx(first.energy_kwh + second.energy_kwh)
    assert total.machine_kwh == pytest.approx(first.energy_kwh + second.energy_kwh / 3)
    assert total.pue == pytest.approx(total.energy_kwh / total.machine_kwh)
    # the memory's power is a constant of the machine
    assert second.ram_kwh / second.seconds == pytest.approx(3 * first.ram_kwh / first.seconds, rel=0.1)


def test_a_file_that_codecarbon_moved_aside_still_counts(tmp_path: Path) -> None:
    """As after an upgrade between two starts of a run: another version of codecarbon writes other columns."""
    totals = []
    for _ in range(2):
        meter = EnergyMeter(tmp_path, GridSettings())
        meter.start()
        time.sleep(0.2)
        meter.stop()
        totals.append(read_emissions(tmp_path / "emissions.csv").energy_kwh)
        path = tmp_path / "emissions.csv"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0] + ",new_column", *(line + ",1" for line in lines[1:])]) + "\n")
    assert (tmp_path / "emissions.csv.bak").is_file()
    total = read_emissions(tmp_path / "emissions.csv")
    assert total is not None
    assert total.num_starts == 2
    assert total.energy_kwh == pytest.approx(totals[1])


def test_the_share_of_the_energy_is_that_of_the_nearest_score(tmp_path: Path) -> None:
    write_emissions(tmp_path / "emissions.csv", energy_row("a", 1.0, 0.1))
    scores = [{"step": step, "tokens": 1, "scored_tokens": 9, "kwh": kwh, "bits_per_byte": bits, "perplexity": 2.0,
               "kg_co2e": 0.1} for step, kwh, bits in ((0, 0.0, 3.0), (5, 0.6, 2.0), (9, 1.0, 1.0))]  # fmt: skip
    write_rows(tmp_path / "metrics.jsonl", scores)
    text = write_energy_report(tmp_path)
    found = json.loads((tmp_path / "emissions.json").read_text())["half"]
    assert (found["step"], found["energy_share"], found["share"]) == (5, pytest.approx(0.6), pytest.approx(0.5))
    assert "The first 0.6 kWh, 60% of the energy up to the last score, bought 50% of the gain" in text
