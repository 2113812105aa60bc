"""Which corpora of `ttl corpus` files belong to, by the passports that lie beside them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..checks import InputError
from ..stage_folder import find_manifest, parse_record, sha256_file

PASSPORT_NAME = "passport.json"


def read_passport(folder: Path) -> dict[str, Any] | None:
    """Return the passport of a folder of `ttl corpus`, or None where it is no such folder."""
    path = folder / PASSPORT_NAME
    if not path.is_file() or (find_manifest(folder) or {}).get("stage") != "corpus":
        return None
    try:
        return parse_record(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}). `ttl corpus` writes it again.") from error


def describe_corpus(folder: Path, passport: dict[str, Any]) -> dict[str, Any]:
    """Return what those who use a corpus keep of its passport: its hash, the licence as a whole, and its sources."""
    kept = ("license", "url", "revision", "register")
    return {
        "name": folder.resolve().name,
        "passport_sha256": sha256_file(folder / PASSPORT_NAME),
        "created": passport["created"],
        "documents": passport["whole"]["documents"],
        "licence": passport["licence"]["licence"],
        "reason": passport["licence"]["reason"],
        "warnings": passport["licence"]["warnings"],
        **({"contamination": passport["contamination"]} if "contamination" in passport else {}),
        "sources": {
            name: {key: source[key] for key in kept}
            for name, source in passport["sources"].items()
            if source["statistics"]["documents"]
        },
    }


def say_contamination(contamination: dict[str, Any] | None) -> str:
    """Return what a passport says of evaluation sets, as a sentence."""
    if contamination is None:
        return "Nobody looked for evaluation sets in it: no set was named under decontamination."
    found = ", ".join(f"{name} {number:,}" for name, number in contamination["passages"].items())
    return (f"Passages of evaluation sets that were removed: {found}. Documents that went as a whole for one: "
            f"{contamination['documents']:,}.")  # fmt: skip


def contamination_of(model: Path) -> list[dict[str, Any]]:
    """Return what is known of evaluation sets in the text that a model was trained on.

    Args:
        model: folder of a run, or of a checkpoint in one.

    Returns:
        `corpus` and `contamination`, as passports say it (None: nobody looked), of each corpus that says it.
    """
    manifest = find_manifest(model) or find_manifest(model.parent) or {}
    data = manifest.get("data")
    corpora = data.get("corpora") if isinstance(data, dict) else None
    return [{"corpus": corpus["name"], "contamination": corpus["contamination"]}
            for corpus in corpora or [] if isinstance(corpus, dict) and "contamination" in corpus]  # fmt: skip


def corpora_of(files: Iterable[Path], hashes: Collection[str]) -> list[dict[str, Any]]:
    """Return the corpora that some files belong to, each once.

    A file belongs to a corpus whose passport names it with the hash that it has now; one that was changed does not.

    Args:
        files: that are read, such as `corpus/train/00000.parquet`.
        hashes: sha256 of all of them.
    """
    found: dict[Path, dict[str, Any]] = {}
    passports: dict[Path, dict[str, Any] | None] = {}
    for file in files:
        folder = file.resolve().parent.parent
        if folder not in passports:
            passports[folder] = read_passport(folder)
        passport = passports[folder]
        if passport is not None and passport["files"].get(str(file.resolve().relative_to(folder))) in hashes:
            found.setdefault(folder, describe_corpus(folder, passport))
    return list(found.values())
