"""What the Hub expects: what its client can raise, for the two majors that we admit, and how it names licences."""

import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .checks import InputError, near_name


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions by which a read from the Hub fails: HTTP answers, transport, a file that is not cached.

    The transport is httpx in huggingface_hub 1 and httpx2 in 2 (measured: a dead server raises its ConnectError).
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return (HfHubHTTPError, LocalEntryNotFoundError, transport_module().HTTPError, ConnectionError)


def transport_module() -> Any:
    """Return the HTTP library of the installed Hub client."""
    return import_module("httpx2" if find_spec("httpx2") else "httpx")


# Source: the table in docs/hub/repositories-licenses.md of huggingface/hub-docs (commit 008d54d), without `other`, to
# which a name and a text belong; and Llama 3 and EUPL 1.2, which the Hub has taken in since.
_HUB_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3
llama3.1 llama3.2 llama3.3 gemma unknown
"""
_HUB_LICENSES = frozenset(_HUB_NAMES.split())
# Words of full names that no identifier has, and names whose identifier has no number, or always the same.
_FILLING = re.compile(r"\b(the|license|licence|licen[cç]a|version|vers[aã]o|international|universal|only|or-later)\b")
_SHORT_NAMES = {
    "apache": "apache-2.0", "apache-2": "apache-2.0", "cc0": "cc0-1.0", "cc-zero": "cc0-1.0", "cc-0": "cc0-1.0",
    "odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "odc-odbl": "odbl", "pddl-1.0": "pddl", "gfdl-1.3": "gfdl",
    "gnu-gpl": "gpl", "zlib-libpng": "zlib",
}  # fmt: skip


def hub_license(name: str) -> str | None:
    """Return the Hub's identifier of a licence, or None when it has none.

    >>> [hub_license(name) for name in ("CC BY-SA 4.0", "Apache License, Version 2.0", "GPLv3", "my own")]
    ['cc-by-sa-4.0', 'apache-2.0', 'gpl-3.0', None]
    """
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower())
    if plain in _HUB_LICENSES:
        return plain
    words = _FILLING.sub(" ", plain.replace("or-later", " ").replace(",", " "))
    words = re.sub(r"(?<=[a-z])-?v?(?=\d(\.\d)?$)", "-", re.sub(r"[\s_-]+", "-", words).strip("-"))
    words = re.sub(r"-v(?=\d)", "-", words).replace("--", "-")
    candidates = (words, words + ".0", _SHORT_NAMES.get(words, ""), words.replace("-", ""))  # "Llama 3.1"
    return next((found for found in candidates if found in _HUB_LICENSES), None)


def model_license(field: str, name: str) -> str:
    """Return the Hub's identifier of a model's licence.

    Raises:
        InputError: it has none, so that the Hub would refuse the card.
    """
    found = hub_license(name)
    if found is None:
        raise InputError(
            f"{field}={name}: the Hub takes its own names of licences only.{near_name(name.lower(), _HUB_LICENSES)} "
            "Write one of them, such as apache-2.0, mit or cc-by-4.0; the list is at "
            "https://huggingface.co/docs/hub/repositories-licenses. For terms of your own write `unknown`, and set "
            "license: other, license_name and license_link in the published card."
        )
    return found
