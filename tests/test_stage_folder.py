"""The stage folder: when a stage is done, what may go on, what is somebody else's, and who holds it."""

from pathlib import Path

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.stage_folder import StageFolder, find_manifest


def stage_folder(path: Path) -> StageFolder:
    return StageFolder(path, "pack", "rows", frozenset({"rows.npy"}))


def test_a_stage_is_done_by_its_manifest_and_its_plan(tmp_path: Path) -> None:
    place = stage_folder(tmp_path / "p")
    assert not place.is_done("a")
    assert not place.path.exists()
    with place.held("packing into it"):
        (place.path / "rows.npy.partial").touch()
    for left_by_a_kill in ("rows.npy", ".lock", "run.json.partial"):
        (place.path / left_by_a_kill).touch()
    assert not place.is_done("a")
    place.finish({"plan_sha256": "a"})
    assert place.is_complete
    assert place.is_done("a")
    with pytest.raises(
        InputError, match="output_dir=.*p: holds rows of other inputs or settings. Choose another folder"
    ):
        place.is_done("b")
    with pytest.raises(InputError, match="output_dir=.*p: was made by 'pack', not by 'tokenizer'"):
        StageFolder(place.path, "tokenizer", "a tokenizer").is_done("a")
    place.reopen()
    assert not place.is_done("b")
    (place.path / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"is not empty \(thesis.txt\). Choose an empty or new folder"):
        place.is_done("a")


def test_a_held_folder_refuses_a_second_process_and_leaves_nothing(tmp_path: Path) -> None:
    place = stage_folder(tmp_path / "run" / "p")
    refusal = "another process is packing into it. Wait for it, or choose another folder"
    with place.held("packing into it"), pytest.raises(InputError, match=refusal), place.held("packing into it"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(ZeroDivisionError), place.held("packing into it"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    place.path.mkdir()
    place.finish({})
    with pytest.raises(InputError, match="another process has completed it meanwhile"), place.held("packing into it"):
        pass


def test_a_run_is_known_by_its_environment(tmp_path: Path) -> None:
    place = StageFolder(tmp_path, "classify", "run", frozenset({"packed"}))
    (tmp_path / "packed").mkdir()
    (tmp_path / "environment.json.partial").touch()  # left by a kill
    assert place.begun() is None
    place.begin({"seed": "1"}, {"device": "cpu"})
    begun = place.begun()
    assert begun is not None
    assert (begun["identity"], begun["device"]) == ({"seed": "1"}, "cpu")
    place.ensure_same(begun["identity"], {"seed": "1"})
    with pytest.raises(
        InputError, match=r"holds another run; different: seed \(there 1, now 2\). Choose another folder"
    ):
        place.ensure_same(begun["identity"], {"seed": "2"})
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(InputError, match="environment.json is damaged .*[.] Choose another folder"):
        place.begun()
    (tmp_path / "environment.json").rename(tmp_path / "thesis.txt")
    with pytest.raises(InputError, match=r"is not empty and holds no run of ours \(thesis.txt\)"):
        place.begun()


def test_a_manifest_is_found_whatever_made_it(tmp_path: Path) -> None:
    assert find_manifest(tmp_path) is None
    for text in ("{", "[]", "{}", '{"stage": []}'):
        (tmp_path / "run.json").write_text(text)
        assert find_manifest(tmp_path) is None
    stage_folder(tmp_path).finish({"rows": 3})
    found = find_manifest(tmp_path)
    assert found is not None
    assert (found["stage"], found["rows"]) == ("pack", 3)
