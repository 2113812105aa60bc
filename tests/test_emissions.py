import csv
import time
from pathlib import Path

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.emissions import read_emissions
from teenytinyllama.grid import GridSettings, grid_intensity
from teenytinyllama.meter import EnergyMeter


def test_the_meter_adds_up_over_starts(tmp_path: Path) -> None:
    totals = []
    for _ in range(2):
        meter = EnergyMeter(tmp_path, GridSettings())
        meter.start()
        time.sleep(0.3)
        meter.flush()
        time.sleep(0.2)
        totals.append(meter.stop())
    assert 0 < totals[0][0] < totals[1][0]
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


def test_no_file_is_no_measurement_and_a_foreign_file_is_refused(tmp_path: Path) -> None:
    assert read_emissions(tmp_path / "emissions.csv") is None
    (tmp_path / "emissions.csv").write_text("run_id,energy_consumed\n")
    assert read_emissions(tmp_path / "emissions.csv") is None
    (tmp_path / "emissions.csv").write_text("run_id,energy\na,1\n")
    with pytest.raises(InputError, match="not a codecarbon file"):
        read_emissions(tmp_path / "emissions.csv")


def test_countries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grid_intensity("BRA") == pytest.approx(98.3, abs=0.1)  # codecarbon's table, 2023
    assert grid_intensity("PRT") > grid_intensity("FRA")
    with pytest.raises(InputError, match="country_iso_code=PTR: unknown country"):
        grid_intensity("PTR")
