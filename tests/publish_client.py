"""A client and its Hub in one process: `publish` under one fault after the other, as a script because the Hub client
reads its endpoint when it is imported. Prints a JSON list of what differs from a publishing without faults.

    python publish_client.py RUN FOLDER xet|lfs|bucket HOW...
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from hub_server import HubServer

REPOSITORY = "ana/modelo"


def end_state(server: HubServer) -> dict[str, Any]:
    """What is on the server: per branch all files and the number of commits, so that a duplicate is seen.

    Of a bucket, which has no commits: all files.
    """
    if server.exists(REPOSITORY, "bucket"):
        return {name: hash(content) for name, content in server.files(REPOSITORY, repo_type="bucket").items()}
    refs = server.refs(REPOSITORY)["branches"]
    return {
        branch: [
            len(server.history(REPOSITORY, branch)),
            {name: hash(content) for name, content in server.files(REPOSITORY, branch).items()},
        ]
        for branch in sorted(refs)
    }


def main(run: Path, folder: Path, transport: str, kinds: list[str]) -> list[str]:
    """Fail each request of a publishing once in each way; return what went wrong."""
    with HubServer(folder / "hub", {"hf_ana": "ana"}, part_bytes=20_000, xet=transport != "lfs") as server:
        os.environ.update(server.environment(folder / "home", token="hf_ana"))
        os.environ.pop("HF_HUB_OFFLINE", None)
        from huggingface_hub import HfApi

        from teenytinyllama.checks import RunFailedError
        from teenytinyllama.publishing.connection import HubLimits
        from teenytinyllama.publishing.publish import PublishConfig, publish

        limits = HubLimits(answer_seconds=2.0, give_up_seconds=60.0, first_wait_seconds=0.01)
        PublishConfig.limits = lambda self: limits  # type: ignore[method-assign]
        logging.disable(logging.CRITICAL)

        def attempt() -> None:
            publish(run, PublishConfig(to=REPOSITORY if transport != "bucket" else f"bucket:{REPOSITORY}"))

        attempt()
        expected, count, wrong = end_state(server), len(server.requests), []
        assert count > 20
        delete = HfApi().delete_bucket if transport == "bucket" else HfApi().delete_repo
        for how in kinds:
            for number in range(1, count + 1):
                server.clear_faults()
                delete(REPOSITORY)
                server.forget()
                server.fail_request_number(number, how)
                try:
                    attempt()
                except RunFailedError as error:
                    wrong.append(f"{how} of request {number}: {error}")
                if not any(request.fault for request in server.requests):
                    wrong.append(f"{how} of request {number}: never came")
                if end_state(server) != expected:
                    wrong.append(f"{how} of request {number}: {server.requests[number - 1].path} another end state")
        print(f"{count} requests", file=sys.stderr)
        return wrong


if __name__ == "__main__":
    out = sys.stdout
    sys.stdout = sys.stderr
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])), file=out)
