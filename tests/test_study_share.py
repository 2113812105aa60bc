"""A comparison on the Hub: votes and answers as a dataset, and the page as a Space."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from made_study import SYSTEMS, a_vote, vote_on, write_study

from teenytinyllama import cli
from teenytinyllama.checks import InputError
from teenytinyllama.people.share import anonymous, study_upload, write_space
from teenytinyllama.people.study import read_study
from teenytinyllama.people.votes import VoteFile


@pytest.fixture
def voted(tmp_path: Path) -> Path:
    folder = write_study(tmp_path / "comparison")
    described = json.loads((folder / "study.json").read_text())
    described["systems"][0]["source"] = "/casa/ana/outputs/tiny/base"
    (folder / "study.json").write_text(json.dumps(described))
    study = read_study(folder)
    file = VoteFile(folder / "votes.jsonl", study.prompts_sha256)
    for number, prompt in enumerate(study.prompts):
        left, right = (SYSTEMS[0], SYSTEMS[1]) if number % 2 else (SYSTEMS[2], SYSTEMS[0])
        file.append(vote_on(study, left, right, prompt=prompt, voter="Ana" if number % 3 else "Rui Silva",
                           comment="disse o Rui", choice="left" if number % 2 else "both_bad"))  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_comparison_is_read_by_plain_datasets(
    voted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "published"
    assert cli.main(["publish", str(voted), "--to", f"folder:{target}"]) == 2
    assert "license: " in capsys.readouterr().err
    assert cli.main(["publish", str(voted), "--to", f"folder:{target}", "--license", "cc-by-4.0"]) == 0
    code = f"""
from datasets import load_dataset
votes = load_dataset({str(target)!r}, "votes", split="train")
answers = load_dataset({str(target)!r}, "answers", split="train")
print(len(votes), sorted(set(votes["voter"])), votes.column_names, len(answers), sorted(set(answers["system"])))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "12 ['p1', 'p2'] ['vote', 'time', 'voter', 'prompt', 'left', 'right', 'choice', 'comment',"
    )
    assert done.stdout.rstrip().endswith(f"36 {sorted(SYSTEMS)}")
    everything = b"".join(path.read_bytes() for path in target.rglob("*") if path.is_file())
    for word in (b"Ana", b"Rui", b"disse", b"/casa/ana"):
        assert word not in everything, word
    card = (target / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in card
    assert "12 votes on 12 prompts" in card
    assert "2 pessoas deram 12 votos" in card or "2 people gave 12 votes" in card
    assert not {"offers.json", "voting.lock"} & {path.name for path in target.rglob("*")}


@pytest.mark.slow
def test_a_comparison_is_published_and_loaded_by_name(voted: Path, tmp_path: Path) -> None:
    publish = "import sys; from teenytinyllama import cli; sys.exit(cli.main(sys.argv[1:]))"
    load = "import datasets; print(len(datasets.load_dataset('ana/votos', 'votes', split='train')))"
    words = ["publish", str(voted), "--to", "ana/votos", "--license", "cc-by-4.0"]
    with HubServer(tmp_path / "hub", tokens={"hf_ana": "ana"}) as server:
        environment = server.environment(tmp_path / "home", "hf_ana", PYTHONPATH=str(Path(__file__).parent.parent))

        def run(code: str, *arguments: str) -> str:
            command = [sys.executable, "-c", code, *arguments]
            done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(publish, *words)
        assert run(load).split()[-1] == "12"
        study = read_study(voted)
        file = VoteFile(voted / "votes.jsonl", study.prompts_sha256)
        file.append(vote_on(study, SYSTEMS[1], SYSTEMS[2], voter="Bia", choice="both_good"))
        run(publish, *words)
        assert run(load).split()[-1] == "13"


def test_comments_can_be_kept() -> None:
    votes = [a_vote(voter="Ana", comment="oi"), a_vote(voter="Rui"), a_vote(voter="Ana")]
    assert [vote.voter for vote in anonymous(votes)] == ["p1", "p2", "p1"]
    assert anonymous(votes)[0].comment == ""
    assert anonymous(votes, comments=True)[0].comment == "oi"


@pytest.mark.parametrize("keys", [["--follow", "true"], ["--revision", "gguf"], ["--base_model", "ana/m"]])
def test_keys_of_a_run_are_refused(voted: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", str(voted), "--to", "ana/votos", "--license", "mit", *keys]) == 2
    assert "is a comparison. Leave it out" in capsys.readouterr().err


def test_without_votes_there_is_nothing_to_share(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nobody has voted yet, so there is nothing to share"):
        study_upload(write_study(tmp_path / "novo"), "ana/votos", "mit")


def test_the_page_as_a_space(voted: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    assert cli.main(["compare", "--output_dir", str(voted), "--serve", "false", "--space_dir", str(space)]) == 0
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert names == {"app.py", "Dockerfile", "requirements.txt", "README.md", "comparison/study.json", "comparison/prompts.jsonl",
                     *(f"comparison/answers/{name}.jsonl" for name in SYSTEMS)}  # fmt: skip
    assert "/casa" not in (space / "comparison" / "study.json").read_text()
    with pytest.raises(InputError, match="is not empty. Give a new folder"):
        write_space(read_study(voted), space)
    # Its app answers under the name that the Hub gives it, and may stand in the Hub's frame.
    code = (space / "app.py").read_text(encoding="utf-8")
    script = re.sub(r"uvicorn\.run\((make_voting_app\(.*?\)), host.*", r"app = \1", code) + ASKED
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=space, capture_output=True, text=True, check=False,
        env={**environment(), "SPACE_HOST": "ana-votos.hf.space"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200", "400", "True"]
    # With a disk that stays, votes lie there, and a second start goes on with them.
    (tmp_path / "disk").mkdir()
    for votes in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", script + VOTED], cwd=space, capture_output=True, text=True, check=False,
            env={**environment(), "SPACE_HOST": "ana-votos.hf.space", "VOTES_DISK": str(tmp_path / "disk")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        kept = tmp_path / "disk" / "comparison" / "votes.jsonl"
        assert len(kept.read_text(encoding="utf-8").splitlines()) == votes
    assert not (space / "comparison" / "votes.jsonl").exists()
    before = len(VoteFile(voted / "votes.jsonl", read_study(voted).prompts_sha256).read())
    assert cli.main(["compare", "--output_dir", str(voted), "--serve", "false", "--merge", str(kept)]) == 0
    assert len(VoteFile(voted / "votes.jsonl", read_study(voted).prompts_sha256).read()) == before + 2


ASKED = """
from fastapi.testclient import TestClient
client = TestClient(app, base_url="https://ana-votos.hf.space")
good = client.get("/")
print(good.status_code, client.get("/", headers={"host": "mal.example"}).status_code,
      "frame-ancestors https://huggingface.co" in good.headers["content-security-policy"])
"""


VOTED = """
offer = client.post("/pair", json={"voter": "Bia"}).json()["offer"]
marks = {"left": [], "right": []}
body = {"voter": "Bia", "offer": offer, "choice": "left", "marks": marks}
assert client.post("/vote", json=body).status_code == 200
"""


def environment() -> dict[str, Any]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
