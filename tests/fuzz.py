"""Bad input by the thousand: `python tests/fuzz.py 10000` goes on where it was stopped, and lists what it found.

`python tests/fuzz.py replay FILE` runs one case again, in a folder that it keeps and names.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import conftest  # noqa: F401  # no network
import yaml
from fuzz_cases import CONFIGS, Case, cases, from_text
from fuzz_oracle import Fault, run_in_process
from fuzz_world import make_world
from hypothesis import HealthCheck, Phase, given, seed, settings

PLACE = Path(os.environ.get("TTL_FUZZ_FOLDER", Path(__file__).resolve().parent.parent / ".fuzz"))
CHUNK = 250


def run_chunk(number: int, size: int, world: Path, verbs: tuple[str, ...]) -> dict[str, object]:
    """Run the cases of one seed and return their exit codes and faults; each new fault is kept as a file."""
    codes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    slowest = (0.0, "")

    @seed(number)
    @settings(
        max_examples=size,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(verbs))
    def run(case: Case) -> None:
        nonlocal slowest
        start = time.monotonic()
        (PLACE / "now.yaml").write_text(case.to_text())  # what to look at where the process itself is lost
        with tempfile.TemporaryDirectory() as folder:
            try:
                codes[run_in_process(case, world, Path(folder) / "case")] += 1
            except Fault as fault:
                codes["fault"] += 1
                faults[fault.signature] += 1
                keep(case, fault)
        slowest = max(slowest, (time.monotonic() - start, case.verb))

    run()
    return {
        "seed": number,
        "cases": codes.total(),
        "codes": dict(codes),
        "faults": dict(faults),
        "slowest": list(slowest),
    }


def keep(case: Case, fault: Fault) -> None:
    """Keep the first case of a fault, to be run again."""
    name = "".join(letter if letter.isalnum() else "-" for letter in fault.signature)[:100]
    path = PLACE / "faults" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        said = "".join(f"# {line}\n" for line in str(fault).encode("ascii", "backslashreplace").decode().splitlines())
        path.write_text(said + case.to_text(), encoding="utf-8")
        print(f"FAULT {fault.signature}: python tests/fuzz.py replay {path}", flush=True)


def replay(path: Path) -> None:
    """Run a kept case again."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    case = from_text(path.read_text(encoding="utf-8"))
    world = make_world(folder / "world")
    print(f"{folder / 'case'}: config.yaml and inputs\n{case}", flush=True)
    print(run_in_process(case, world, folder / "case"))


def main(arguments: list[str]) -> None:
    """Run so many cases, less those that were run before."""
    if arguments and arguments[0] == "replay":
        return replay(Path(arguments[1]))
    wanted, verbs = int((arguments or ["1000"])[0]), tuple(arguments[1:]) or tuple(CONFIGS)
    progress = PLACE / "chunks.yaml"
    PLACE.mkdir(parents=True, exist_ok=True)
    done = list(yaml.safe_load_all(progress.read_text())) if progress.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        while (left := wanted - sum(chunk["cases"] for chunk in done)) > 0:
            start = time.monotonic()
            chunk = run_chunk(max((part["seed"] for part in done), default=0) + 1, min(CHUNK, left), world, verbs)
            done.append({**chunk, "seconds": round(time.monotonic() - start)})
            with progress.open("a") as file:
                yaml.safe_dump(done[-1], file, explicit_start=True)
            print(done[-1], flush=True)
    faults = sum((Counter(chunk["faults"]) for chunk in done), Counter())
    print(
        f"{sum(chunk['cases'] for chunk in done)} cases: {dict(sum((Counter(chunk['codes']) for chunk in done), Counter()))}"
    )
    for signature, count in faults.most_common():
        print(f"{count:6}  {signature}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
