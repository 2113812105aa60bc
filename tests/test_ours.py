"""Nothing that this package did not make is ever deleted: neighbours of what it writes, and folders of its names."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from teenytinyllama.checkpointing.checkpoints import (
    Marker,
    begin_saving,
    checkpoint_faults,
    delete_checkpoint,
    is_ours,
    write_marker,
)
from teenytinyllama.checkpointing.saving import refuse_strangers
from teenytinyllama.checks import InputError
from teenytinyllama.data.pack import Journal, packed_folder
from teenytinyllama.disk import _MARK_NAME, scratch_folder
from teenytinyllama.publishing.dataset_shards import Staging
from teenytinyllama.publishing.publish import write_folder
from teenytinyllama.publishing.safety import Upload, UploadFile, check_folder, folder_of
from teenytinyllama.stage_folder import MARKER_NAME
from teenytinyllama.training.trials import measure_speed

UPLOAD = Upload("", "model", "main", (UploadFile("a.txt", b"a"),), "message")


def a_file_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    return folder / "mine.txt"


@pytest.mark.parametrize("suffix", [".partial", ".tmp", ".part"])
def test_a_neighbour_of_a_published_folder_stays(tmp_path: Path, suffix: str) -> None:
    mine = a_file_in(tmp_path / f"X{suffix}")
    write_folder([UPLOAD], tmp_path / "X")
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["X", f"X{suffix}"]
    assert (tmp_path / "X" / "a.txt").read_text() == "a"


def test_a_link_to_an_empty_folder_is_filled_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    write_folder([UPLOAD], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("to", [".", "..", "/", "run", "run/inner", "full"])
def test_a_folder_that_cannot_be_published_to_is_refused_by_name(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_file_in(tmp_path / "run")
    a_file_in(tmp_path / "full")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"to=folder:{to}: (is not empty|lies in the run's own folder run)"):
        check_folder(folder_of(f"folder:{to}"), Path("run"))


def test_a_folder_of_nobody_is_refused() -> None:
    with pytest.raises(InputError, match="to=folder:~nobody-of-this-name/x: this machine has no such user"):
        folder_of("folder:~nobody-of-this-name/x")


def test_a_scratch_folder_goes_with_its_block(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "x").write_text("x")
        assert sorted(folder.iterdir()) == [folder / "x"]
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from teenytinyllama.disk import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "x").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    (dead,) = tmp_path.iterdir()
    mark = json.loads((dead / _MARK_NAME).read_text())
    (tmp_path / "ttl-link").symlink_to(tmp_path / "elsewhere")
    kept = {
        "ttl-unmarked": None,
        "ttl-alive": {**mark, "pid": os.getppid(), "started": None},
        "ttl-other-machine": {**mark, "machine": "another"},
        "ttl-damaged": [],
        "elsewhere": mark,  # a link leads there
    }
    import psutil

    kept["ttl-alive"]["started"] = psutil.Process(os.getppid()).create_time()  # type: ignore[index,call-overload]
    for name, content in kept.items():
        a_file_in(tmp_path / name)
        if content is not None:
            (tmp_path / name / _MARK_NAME).write_text(json.dumps(content))
    reused = tmp_path / "ttl-reused"  # its process is dead, another has its number
    a_file_in(reused)
    (reused / _MARK_NAME).write_text(json.dumps({**mark, "pid": os.getpid(), "started": 1.0}))
    with scratch_folder(tmp_path):
        assert not dead.exists()
        assert not reused.exists()
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "ttl-link"}


def test_the_systems_temporary_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        assert folder.parent.parent == tmp_path


def test_a_strangers_checkpoint_is_neither_deleted_nor_written_over(tmp_path: Path) -> None:
    mine = a_file_in(tmp_path / "checkpoint-9")
    assert not is_ours(mine.parent)
    assert not delete_checkpoint(mine.parent)
    linked = tmp_path / "checkpoint-10"
    linked.symlink_to(a_file_in(tmp_path / "far").parent)
    (tmp_path / "far" / MARKER_NAME).write_text("{}")
    assert not delete_checkpoint(linked)
    assert (tmp_path / "far" / MARKER_NAME).exists()
    (tmp_path / "far" / MARKER_NAME).unlink()
    with pytest.raises(InputError, match="checkpoint-9, checkpoint-10 may lie where this run will save.*Move it away"):
        refuse_strangers(tmp_path, 100)
    refuse_strangers(tmp_path, 8)  # not in the way
    begin_saving(tmp_path / "checkpoint-11")
    assert delete_checkpoint(tmp_path / "checkpoint-11")
    assert mine.exists()


def test_weights_that_a_marker_does_not_list_are_a_fault(tmp_path: Path) -> None:
    begin_saving(tmp_path)
    write_marker(tmp_path, Marker(3, 1, 0, files={}))
    assert checkpoint_faults(tmp_path) == ["complete.json lists no file"]
    (tmp_path / "model.safetensors").touch()
    assert "model.safetensors is not listed in complete.json" in checkpoint_faults(tmp_path)


def test_a_strangers_unfinished_folder_is_not_packed_into(tmp_path: Path) -> None:
    mine = a_file_in(tmp_path / ".partial")
    with pytest.raises(InputError, match=r"is not empty \(.partial\). Choose an empty or new folder"):
        packed_folder(tmp_path).is_done("0" * 64)
    mine.rename(tmp_path / "train.npy")  # a name of ours is not enough
    with pytest.raises(InputError, match=r"is not empty \(train.npy\)"):
        packed_folder(tmp_path).is_done("0" * 64)
    (tmp_path / "train.npy").unlink()
    assert not packed_folder(tmp_path).is_done("0" * 64)
    Journal(tmp_path / ".partial", "0" * 64, "uint16", 8).close()
    (tmp_path / "train.npy").touch()
    assert not packed_folder(tmp_path).is_done("0" * 64)
    Journal(tmp_path / ".partial", "1" * 64, "uint16", 8).close()  # of other settings, and ours
    assert (tmp_path / ".partial" / "plan").read_text() == "1" * 64


@pytest.mark.parametrize("name", ["shards.jsonl", "plan.json", "data"])
def test_a_strangers_staging_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.json").write_text('{"plan": "mine"}')
    if name != "plan.json":
        (tmp_path / "plan.json").rename(tmp_path / name)
    with pytest.raises(InputError, match=f"is not empty .{name}"):
        Staging(tmp_path, {})
    assert (tmp_path / name).read_text() == '{"plan": "mine"}'


def test_a_strangers_folder_of_a_speed_test_is_refused(tmp_path: Path) -> None:
    mine = a_file_in(tmp_path / "speed-test")
    with pytest.raises(InputError, match="its speed-test is not of a speed test. Move it away"):
        measure_speed({"output_dir": str(tmp_path)}, 1, lambda values, log: 0)
    assert mine.read_text() == "mine"


def test_a_save_that_a_full_disk_ended_at_its_first_file_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-4"
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: exec("raise OSError(28, 'No space left on device')"))
        with pytest.raises(OSError, match="No space left"):
            begin_saving(path)
    assert [entry.name for entry in path.iterdir()] == ["begun.json.partial"]
    refuse_strangers(tmp_path, 100)
    (path / "notes.txt").touch()  # of somebody else
    with pytest.raises(InputError, match="checkpoint-4 may lie where this run will save"):
        refuse_strangers(tmp_path, 100)
    assert not delete_checkpoint(path)
    (path / "notes.txt").unlink()
    assert delete_checkpoint(path)
    assert not path.exists()
