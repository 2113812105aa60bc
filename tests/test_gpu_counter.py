"""GPU energy against the GPUs' own counters. The one fake is NVIDIA's library: there is no GPU to ask."""

import json
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama.energy.emissions import GridSettings
from teenytinyllama.energy.ledger import LedgerWriter, read_ledger
from teenytinyllama.energy.meter import EnergyMeter, EnergyReading, GpuCounter, load_nvml, visible_gpus
from teenytinyllama.publishing.energy_report import describe_gpu_check, energy_report

KWH = 3_600_000_000  # millijoules


class NVMLError(Exception):
    """As in NVIDIA's library."""


class FakeNvml:
    """Two GPUs with counters that a test sets; None is a GPU without one."""

    NVMLError = NVMLError

    def __init__(self, *millijoules: int | None, sliced: bool = False) -> None:
        self.millijoules, self.sliced = list(millijoules), sliced

    def nvmlDeviceGetCount(self) -> int:  # NVIDIA's names
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes | str:  # bytes in older versions
        return f"GPU-{handle}abc-{handle}".encode() if handle == 0 else f"GPU-{handle}abc-{handle}"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        if not name.startswith("MIG-of-"):
            raise NVMLError("Not Found")
        return name

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> int:
        return int(handle.removeprefix("MIG-of-"))

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if not self.sliced:
            raise NVMLError("Not Supported")
        return [1, 1]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        found = self.millijoules[handle]
        if found is None:
            raise NVMLError("Not Supported")
        return found


def counter_of(nvml: Any) -> GpuCounter:
    counter = GpuCounter(nvml)
    counter.start()
    return counter


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_sum_is_what_the_counters_went_up_by() -> None:
    nvml = FakeNvml(5 * KWH, 7 * KWH)
    counter = counter_of(nvml)
    assert counter.gpus == [0, 1]
    assert counter.kwh() == 0
    nvml.millijoules = [5 * KWH + KWH // 2, 8 * KWH]
    assert counter.kwh() == pytest.approx(1.5)
    nvml.millijoules = [6 * KWH, 8 * KWH]
    assert counter.kwh() == pytest.approx(2.0)
    assert counter.reason == ""


@pytest.mark.parametrize(
    ("named", "expected"),
    [("1", [1]), ("1,0", [0, 1]), ("0,-1,1", [0]), ("", []), ("-1", []), ("2", []), ("GPU-1ab", [1]),
     ("GPU-1abc-1, GPU-0abc-0", [0, 1]), ("GPU-9", [])],
)  # fmt: skip
def test_only_the_visible_gpus_count(named: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    nvml = FakeNvml(0, 0)
    assert visible_gpus(nvml) == (expected, "")
    counter = counter_of(nvml)
    nvml.millijoules = [KWH, 10 * KWH]
    assert counter.kwh() == (sum((KWH, 10 * KWH)[gpu] for gpu in expected) / KWH if expected else None)
    assert counter.reason == ("" if expected else "no GPU is visible (CUDA_VISIBLE_DEVICES)")


def test_slices_have_no_counter_and_their_whole_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-of-1")
    counter = counter_of(FakeNvml(0, 0))
    assert counter.gpus == [1]
    assert counter.kwh() is None
    assert counter.reason == "a slice of a GPU (MIG) has no counter of its own"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-unknown")
    counter = counter_of(FakeNvml(0, 0))
    assert counter.gpus is None
    assert counter.reason == "a counter cannot be read (Not Found)"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert counter_of(FakeNvml(0, 0, sliced=True)).reason.startswith("a GPU is cut into slices (MIG)")


def test_what_goes_wrong_ends_the_check_and_is_said() -> None:
    old = counter_of(FakeNvml(0, None))
    assert old.kwh() is None
    assert old.reason == "a counter cannot be read (Not Supported)"
    nvml = FakeNvml(10 * KWH, 10 * KWH)
    reset = counter_of(nvml)
    nvml.millijoules = [11 * KWH, 11 * KWH]
    assert reset.kwh() == 2
    nvml.millijoules = [12 * KWH, 0]
    assert reset.kwh() is None
    nvml.millijoules = [20 * KWH, 20 * KWH]
    assert reset.kwh() is None
    assert reset.reason == "a counter went backwards (the driver was loaded again)"
    nvml = FakeNvml(0, 0)
    failing = counter_of(nvml)
    nvml.millijoules = [0, None]
    assert failing.kwh() is None
    assert failing.reason == "a counter cannot be read (Not Supported)"
    nothing = counter_of(None)
    assert nothing.kwh() is None
    assert nothing.gpus is None
    assert nothing.reason == "no NVIDIA GPU"


def test_a_gpu_that_codecarbon_does_not_see_is_noticed(tmp_path: Path) -> None:
    if load_nvml() is not None:
        pytest.skip("the fake stands for a machine's only GPUs")
    nvml = FakeNvml(0, 0)
    meter = EnergyMeter(tmp_path, GridSettings(pue=1.5), nvml=nvml)
    meter.start()
    ledger = LedgerWriter(tmp_path, 0, 0, meter.about())
    nvml.millijoules = [KWH, KWH]
    meter.flush()
    ledger.write(1, meter.reading())
    nvml.millijoules = [KWH, None]  # fails in the middle: what was read before is still compared
    meter.stop()
    ledger.write(2, meter.reading(), last=True, counter_reason=meter.counter_reason)
    account = read_ledger(tmp_path)
    assert account is not None
    assert account.starts[0].gpu_check == (0.0, 3.0)  # with the building's share, like all energy
    check = energy_report(tmp_path, None, ())["gpu_check"]
    assert (check["status"], check["difference_percent"]) == ("differs", -100)
    said = describe_gpu_check(check)
    assert "Not to the end: a counter cannot be read (Not Supported)." in said
    assert "**Warning**: that is more than 5 %" in said


def write_gpu_run(folder: Path, rows: list[dict[str, Any]], ours: float, about: dict[str, Any]) -> dict[str, Any]:
    """A folder in which codecarbon counted `ours` kWh of GPU, and its report's check."""
    folder.mkdir()
    columns = "run_id,energy_consumed,cpu_energy,gpu_energy,ram_energy,emissions,duration,country_iso_code,region,pue"
    (folder / "emissions.csv").write_text(f"{columns}\na,{ours},0,{ours},0,0.1,3600,BRA,,1.0\n")
    writer = LedgerWriter(folder, 0, 0, {"methods": ["GPU(x)"], "warnings": [], "run_id": "a", **about})
    for number, row in enumerate(rows):
        reading = EnergyReading(ours, 0.0, ours, 0.0, 0.1, 3600.0, row.get("gpu_counter_kwh"))
        writer.write(1, reading, number == len(rows) - 1, counter_reason=row.get("counter_reason", ""))
    return dict(energy_report(folder, None, ())["gpu_check"])


def test_the_report_compares_and_says_why_it_cannot(tmp_path: Path) -> None:
    fine = write_gpu_run(tmp_path / "a", [{"gpu_counter_kwh": 1.0}], 1.04, {"counter_reason": ""})
    assert fine["status"] == "agrees"
    assert fine["difference_percent"] == pytest.approx(4)
    assert "difference +4.00 %." in describe_gpu_check(fine)
    assert "Warning" not in describe_gpu_check(fine)
    wrong = write_gpu_run(tmp_path / "b", [{"gpu_counter_kwh": 1.0}], 1.06, {"counter_reason": ""})
    assert wrong["status"] == "differs"
    short = write_gpu_run(tmp_path / "c", [{"gpu_counter_kwh": 0.0001}], 0.0002, {"counter_reason": ""})
    assert short["status"] == "agrees"  # too little to tell
    unsupported = write_gpu_run(tmp_path / "d", [{}], 1.0, {"counter_reason": "a counter cannot be read (x)"})
    assert describe_gpu_check(unsupported) == (
        "The GPUs' own counters are not available: a counter cannot be read (x)."
    )
    older = write_gpu_run(tmp_path / "e", [{}], 1.0, {})
    assert older["status"] == "not recorded"
    assert "were not recorded" in describe_gpu_check(older)


def test_a_ledger_without_the_field_still_reads(tmp_path: Path) -> None:
    old = {"energy_kwh": 1.0, "cpu_kwh": 0.5, "gpu_kwh": 0.4, "ram_kwh": 0.1, "emissions_kg": 0.1, "seconds": 9.0}
    head = {"start": "a", "time": 1, "event": "start", "machine": 0, "step": 0, "methods": [], "warnings": []}
    rows = [head, {"start": "a", "time": 2, "event": "end", "step": 5, **old}]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    account = read_ledger(tmp_path)
    assert account is not None
    assert account.total.energy_kwh == 1
    assert account.phases_kwh == {}
    assert account.starts[0].gpu_check is None
    assert account.starts[0].counter_reason is None
