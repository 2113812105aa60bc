"""What a measurement is protected from: a user's own codecarbon configuration, and other measurements beside it."""

import inspect
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.energy import meter as tracker
from teenytinyllama.energy.emissions import GridSettings, read_emissions, tell_processor_model
from teenytinyllama.energy.ledger import read_ledger
from teenytinyllama.energy.meter import NEUTRAL, EnergyMeter, Neighbours, check_energy
from teenytinyllama.energy.recorder import Recorder, StageMeter
from teenytinyllama.gpus import processor_model

# Each would change the figures, send them over the network, or end the measurement; the values are no secrets to keep.
HOSTILE = {
    "allow_multiple_runs": "false", "electricitymaps_api_token": "geheim", "co2_signal_api_token": "geheim",
    "emissions_endpoint": "http://127.0.0.1:9/", "force_carbon_intensity_g_co2e_kwh": "9999", "force_cpu_power": "5000",
    "force_ram_power": "5000", "output_methods": "api,logger", "pue": "7", "tracking_mode": "process", "wue": "3",
    "country_iso_code": "PRT", "region": "x", "cloud_provider": "gcp", "cloud_region": "us-east1", "gpu_ids": "3",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measurements of other tests are no neighbours, and codecarbon's lock file is ours to make."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("codecarbon.lock.LOCKFILE", str(folder / ".codecarbon.lock"))
    return folder


def measure(folder: Path, seconds: float = 0.3) -> Any:
    folder.mkdir(exist_ok=True)
    with StageMeter(folder, GridSettings()):
        time.sleep(seconds)
    account = read_ledger(folder)
    assert account is not None
    return account


@pytest.mark.parametrize("place", ["file", "environment"])
def test_a_codecarbon_configuration_changes_nothing_and_is_named(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_temporary_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = measure(tmp_path / "plain")
    assert not any("configuration" in warning for warning in plain.starts[0].warnings)
    if place == "file":
        lines = [f"{key} = {value}" for key, value in HOSTILE.items()]
        (tmp_path / ".codecarbon.config").write_text("[codecarbon]\n" + "\n".join(lines))
    else:
        for key, value in HOSTILE.items():
            monkeypatch.setenv(f"CODECARBON_{key.upper()}", value)
    (own_temporary_folder / ".codecarbon.lock").touch()  # with allow_multiple_runs=false codecarbon would do nothing
    before = signal.getsignal(signal.SIGTERM)
    found = measure(tmp_path / "found")
    assert signal.getsignal(signal.SIGTERM) is before
    total = read_emissions(tmp_path / "found" / "emissions.csv")
    assert total is not None
    assert total.energy_kwh > 0
    assert (total.country_iso_code, total.region, total.pue) == ("BRA", "", 1.0)
    assert total.emissions_kg == pytest.approx(total.energy_kwh * 0.098348, rel=0.01)
    assert found.starts[0].methods == plain.starts[0].methods
    per_second = [account.total.energy_kwh / account.total.seconds for account in (plain, found)]
    assert per_second[1] < 20 * per_second[0]  # a busy machine, but not 5,000 W
    warning = next(text for text in found.starts[0].warnings if "configuration" in text)
    assert warning == f"a codecarbon configuration is there and not used: {', '.join(sorted(HOSTILE))}"
    assert "geheim" not in (tmp_path / "found" / "ledger.jsonl").read_text()
    assert any("codecarbon's lock file says that another tracker" in text for text in found.starts[0].warnings)


def test_codecarbon_is_told_every_argument_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With none left open, a configuration has nothing to fill in; a new argument of another version is noticed here."""
    from codecarbon import OfflineEmissionsTracker

    given: dict[str, Any] = {}

    class Recording(OfflineEmissionsTracker):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            given.update(kwargs)
            super().__init__(**kwargs)

    monkeypatch.setattr("codecarbon.OfflineEmissionsTracker", Recording)
    made = tracker.make_tracker(tmp_path, "emissions.csv", GridSettings(), None)
    bases = [base for base in OfflineEmissionsTracker.__mro__ if base is not object]
    known = {name for base in bases for name in inspect.signature(base).parameters} - {
        "self",
        "args",
        "kwargs",
    }
    # Old names: output_methods and the token under its new name decide before these are looked at.
    old = {"co2_signal_api_token", *(f"save_to_{name}" for name in ("api", "file", "logfire", "logger", "prometheus"))}
    assert set(given) == known - old
    assert set(NEUTRAL) < set(given)
    assert [type(handler).__name__ for handler in made._output_handlers] == ["FileOutput"]
    assert not made._electricitymaps_api_token


def test_an_argument_that_codecarbon_does_not_know_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEUTRAL, "of_another_version", 1)
    assert measure(tmp_path).total.energy_kwh > 0


def test_a_configuration_that_cannot_be_read_is_refused_without_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".codecarbon.config").write_text("api_key = geheim\n")
    with pytest.raises(InputError, match=r"^\.codecarbon\.config: cannot be read \(MissingSectionHeader") as caught:
        check_energy(GridSettings())
    assert "geheim" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_tracker_that_writes_nothing_is_no_measurement_of_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    meter = EnergyMeter(folder, GridSettings())
    meter.start()
    meter.flush()
    monkeypatch.setattr("codecarbon.output.FileOutput.out", lambda *given: None)
    with pytest.raises(RunFailedError, match="codecarbon wrote no row, so this energy would count as 0"):
        meter.stop()


@pytest.mark.skipif(processor_model() is None, reason="the system names no model of its processor")
def test_the_processor_is_named_as_py_cpuinfo_does_without_measuring_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cpuinfo
    from codecarbon.core.util import detect_cpu_model

    named = cpuinfo.get_cpu_info()["brand_raw"]
    detect_cpu_model.cache_clear()
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: pytest.fail("asked for a second"))
    measure(tmp_path / "run")
    assert detect_cpu_model() == named
    monkeypatch.setattr("teenytinyllama.energy.emissions.processor_model", lambda: None)
    detect_cpu_model.cache_clear()
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: {"brand_raw": "a processor that only py-cpuinfo knows"})
    tell_processor_model()
    assert detect_cpu_model() == "a processor that only py-cpuinfo knows"
    detect_cpu_model.cache_clear()


def test_what_codecarbon_found_before_is_looked_for_again(tmp_path: Path) -> None:
    """Its memory of a tracker that was given no GPU would give the next one all of them."""
    from codecarbon.core import hardware_cache

    measure(tmp_path / "first")
    hardware_cache._plans["stale"] = None  # type: ignore[index,assignment]
    measure(tmp_path / "second")
    assert "stale" not in hardware_cache._plans


def test_a_gpu_that_nothing_measures_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Apple's chips, say, where it is no CUDA device."""
    import torch

    meter = EnergyMeter(tmp_path, GridSettings())
    assert not any("GPU" in warning for warning in meter.warnings())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert "the GPU's energy is missing: its counters cannot be read, so it counts as 0" in meter.warnings()


def test_two_measurements_at_once_know_of_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    alone = measure(tmp_path / "a")
    assert not any("other measurement" in text for text in alone.starts[0].warnings)
    second = Recorder(tmp_path / "b", GridSettings())
    assert capsys.readouterr().out == ""
    both = measure(tmp_path / "a")
    assert "energy     warning: other measurements ran on the same machine (1)" in capsys.readouterr().out
    second.write(last=True)
    after = measure(tmp_path / "a")
    assert any(text.startswith("other measurements ran on the same machine (1)") for text in both.starts[1].warnings)
    assert not any("other measurement" in text for text in after.starts[2].warnings)
    assert all(start.total.energy_kwh > 0 for start in after.starts)
    account = read_ledger(tmp_path / "b")
    assert account is not None
    assert account.total.energy_kwh > 0


def test_the_mark_of_a_measurement_goes_with_its_process(tmp_path: Path, own_temporary_folder: Path) -> None:
    code = (
        f"import tempfile; tempfile.tempdir = {str(own_temporary_folder)!r}\n"
        "import time; from teenytinyllama.energy.meter import Neighbours\n"
        "mark = Neighbours(); print('here', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    own = Neighbours()
    assert own.count() == 1
    process.kill()
    process.wait()
    assert own.count() == 0
    own.leave()
    (folder,) = own_temporary_folder.glob("teenytinyllama-meters-*")
    assert list(folder.iterdir()) == []
    assert own.count() == 0


def test_a_folder_that_another_laid_as_a_trap_is_not_written_into(tmp_path: Path, own_temporary_folder: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (own_temporary_folder / f"teenytinyllama-meters-{os.getuid()}").symlink_to(target)
    mark = Neighbours()
    assert mark.count() == 0
    assert list(target.iterdir()) == []
    mark.leave()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"country_iso_code": "BRX"}, "country_iso_code=BRX: unknown country"),
        ({"country_iso_code": "PRT", "region": "Porto"}, "region=Porto: country_iso_code=PRT has one intensity only; "
         "regions are known of CAN, CHN, FIN, NOR, SWE, USA. Leave region out"),
        ({"country_iso_code": "USA", "region": "Californa"}, r"region=Californa: unknown region of USA; one of alabama, "
         r".*Did you mean 'california'\?"),
        ({"country_iso_code": "SWE", "region": "NO1"}, "region=NO1: unknown region of SWE; one of se1, se2, se3, se4"),
        ({"pue": 0.9}, "pue=0.9: a building draws at least what its machines do"),
        ({"pue": float("nan")}, "pue=nan: a building"),
    ],
)  # fmt: skip
def test_grids_that_are_refused(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_energy(GridSettings(**grid))
