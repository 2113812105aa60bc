"""The badges of the notebooks: links to Colab and Kaggle, made of one constant, the repository's address.

python notebooks/badges.py writes them into the first cell of each notebook, or takes them away while it is empty.
"""

import json
import re
from pathlib import Path

# Such as https://github.com/owner/name; empty until the repository has an address.
REPOSITORY = ""
_MARKS = ("<!-- badges -->", "<!-- /badges -->")


def badges(repository: str, notebook: str) -> str:
    """Return the Markdown of a notebook's badges; an empty text without a repository.

    Args:
        repository: address on GitHub.
        notebook: path of the notebook in the repository.

    Raises:
        ValueError: no address on GitHub, which is all that Colab and Kaggle open.
    """
    if not repository:
        return ""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)/?", repository)
    if match is None:
        raise ValueError(f"REPOSITORY={repository}: must be https://github.com/owner/name, or empty.")
    colab = f"https://colab.research.google.com/github/{match[1]}/blob/main/{notebook}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{match[1]}/blob/main/{notebook}"
    return f"[Abrir no Colab]({colab}) · [Abrir no Kaggle]({kaggle})"


def with_badges(first_cell: str, text: str) -> str:
    """Return a notebook's first cell with these badges between its two marks."""
    begin, end = _MARKS
    before, _, rest = first_cell.partition(begin)
    return f"{before}{begin}{text}{end}{rest.partition(end)[2]}"


def main() -> None:
    """Write the badges into every notebook of this folder."""
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        cell = content["cells"][0]
        text = with_badges("".join(cell["source"]), badges(REPOSITORY, f"notebooks/{path.name}"))
        cell["source"] = text.splitlines(keepends=True)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
