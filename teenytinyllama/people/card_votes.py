"""What a model card says of people's votes: taken from a comparison's results.json over into a run's people.json.

No nickname and no comment goes over: a card is public, and those who voted were not asked for more than their votes.
"""

import math
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, ensure_file
from ..stage_folder import PEOPLE_NAME, RESULTS_NAME, find_manifest, parse_record, write_json

_FIX = "Write it again with `ttl card RUN --comparison FOLDER`."
_SHARE = {"value": float, "low": float, "high": float, "votes": int}


def facts_for_card(folder: str | Path) -> dict[str, Any]:
    """Return what a card may say of a comparison, without nicknames.

    Returns:
        `votes`, `people`, `prompts` and `looks_random` (numbers), `alpha` (None if unknown) and `systems`, the
        strongest first, each with `name`, `source`, `share` of wins and `both_bad`; see `study_report`.

    Raises:
        InputError: the folder has no report, or a damaged one.
    """
    fix = "Write the report with `ttl compare` first."
    path = ensure_file("comparison", Path(folder) / RESULTS_NAME, fix)
    try:
        results = parse_record(path.read_bytes())
        return {
            "format": 1,
            **{key: results[key] for key in ("votes", "people", "prompts")},
            "looks_random": len(results["looks_random"]),
            "alpha": results["agreement"]["alpha"],
            "systems": [
                {"name": system["name"], "source": Path(str(system["source"])).name,
                 **{key: {part: system[key][part] for part in _SHARE} for key in ("share", "both_bad")}}
                for system in results["systems"]
            ],
        }  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no report of a comparison ({error!r}). {fix}") from error


def take_votes(run: str | Path, comparison: str | None, check: bool = False) -> None:
    """Write what a card says of a comparison into the folder of a run that took part in it; nothing for None.

    Args:
        run: folder of a finished run.
        comparison: folder of `ttl compare`.
        check: whether the card is only to be checked: then nothing may be written.

    Raises:
        InputError: no finished run, no report, a run that is none of the comparison's systems, or a check.
    """
    if comparison is None:
        return
    ensure(not check, f"comparison={comparison}: a check writes nothing. Leave out comparison or check.")
    run, field = Path(run), f"comparison={comparison}"
    ensure(find_manifest(run) is not None, f"run={run}: is no finished run. Give the output_dir of `ttl pretrain`.")
    facts = facts_for_card(comparison)
    sources = {
        system["name"]: str(system["source"])
        for system in parse_record((Path(comparison) / RESULTS_NAME).read_bytes())["systems"]
    }
    own = [name for name, source in sources.items() if Path(source).resolve() == run.resolve()]
    ensure(own, f"{field}: none of its systems with votes is {run} ({', '.join(sources.values())}). Give its folder.")
    write_json(run / PEOPLE_NAME, {**facts, "system": own[0]})


def read_votes(run: Path) -> dict[str, Any] | None:
    """Return what `take_votes` wrote into a run's folder, or None.

    Raises:
        InputError: the file is damaged.
    """
    path = run / PEOPLE_NAME
    if not path.is_file():
        return None
    try:
        found = parse_record(path.read_bytes())
        for key in ("votes", "people", "prompts", "looks_random"):
            _ensure_type(found[key], int, key)
        if found["alpha"] is not None:
            _ensure_type(found["alpha"], float, "alpha")
        names = [system["name"] for system in found["systems"]]
        _ensure_type(found["system"], str, "system")
        for system in found["systems"]:
            _ensure_type(system["name"], str, "name")
            for share in (system["share"], system["both_bad"]):
                for key, kind in _SHARE.items():
                    _ensure_type(share[key], kind, key)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error!r}). {_FIX}") from error
    ensure(found["system"] in names, f"{path}: names {found['system']}, which is none of its systems. {_FIX}")
    return found


def _ensure_type(value: object, kind: type, key: str) -> None:
    is_number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    if not (isinstance(value, str) if kind is str else is_number):
        raise ValueError(f"{key}={value!r}")
