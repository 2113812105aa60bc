"""Every refusal and every known failure of the package, read from its source: the page on which an error is looked up.

Nothing is imported or run: the messages are the texts in `ensure(...)`, `raise InputError(...)` and their kin, also
where a name or a function of the same module stands for them. What a message puts in, such as a path, is shown by its
name: `{path}`. A message of which only such names are known is left out.

    python docs/site/refusals.py    # one line a message: file:line, then the message
"""

import ast
import html
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent.parent / "teenytinyllama"
# Functions whose message is an argument, and its place.
_MESSAGE_PLACES = {"ensure": 1, "ensure_file": 2, "ensure_disk_space": 3}
_LONGEST_PLACEHOLDER = 24


@dataclass(frozen=True, order=True)
class Refusal:
    """One message that the package can end with.

    Attributes:
        module: path below the package, such as `data/pack.py`.
        line: number of the line on which the call begins.
        kind: `refused` (bad input, exit code 2) or `failed` (a known failure of the work, exit code 1).
        message: the text; what is put in stands in braces.
    """

    module: str
    line: int
    kind: str
    message: str


def collect_refusals(package: Path = PACKAGE) -> list[Refusal]:
    """Return the messages of all modules of the package, in the order of files and lines."""
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    kinds = _error_kinds(list(modules.values()))
    found: list[Refusal] = []
    for path, tree in modules.items():
        texts = _constants(tree)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for line, kind, node in _message_nodes(tree, kinds):
            for meant in _meanings(node, line, functions):
                message = " ".join(_text(meant, texts).split())
                if any(character.isalpha() for character in _without_placeholders(message)):
                    found.append(Refusal(path.relative_to(package).as_posix(), line, kind, message))
    return sorted(set(found))


def _error_kinds(trees: list[ast.Module]) -> dict[str, str]:
    """Return the names of InputError, RunFailedError and of the classes below them, each with its kind."""
    kinds = {"InputError": "refused", "RunFailedError": "failed"}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while True:
        more = {
            node.name: kinds[base.id]
            for node in classes
            for base in node.bases
            if isinstance(base, ast.Name) and base.id in kinds and node.name not in kinds
        }
        if not more:
            return kinds
        kinds |= more


def _message_nodes(tree: ast.Module, kinds: dict[str, str]) -> Iterator[tuple[int, str, ast.expr]]:
    """Yield line, kind and expression of each message of a module."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        place = _MESSAGE_PLACES.get(name, 0 if name in kinds else None)
        if place is not None and len(node.args) > place:
            yield node.lineno, kinds.get(name, "refused"), node.args[place]


def _meanings(node: ast.expr, line: int, functions: list[ast.FunctionDef]) -> list[ast.expr]:
    """Return what a message's expression stands for: what its variable is set to, or what its function returns.

    Args:
        node: the expression.
        line: of the call that it is a message of.
        functions: of the module, in which the variable or the function is looked for.
    """
    if isinstance(node, ast.Name):
        around = [function for function in functions if function.lineno <= line <= (function.end_lineno or 0)]
        return [
            part.value
            for function in around
            for part in ast.walk(function)
            if isinstance(part, ast.Assign)
            and isinstance(part.targets[0], ast.Name)
            and part.targets[0].id == node.id
            and isinstance(part.value, ast.Constant | ast.JoinedStr | ast.BinOp | ast.IfExp)
        ] or [node]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return [
            part.value
            for function in functions
            if function.name == node.func.id
            for part in ast.walk(function)
            if isinstance(part, ast.Return) and part.value is not None
        ] or [node]
    return [node]


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the texts that names of a module stand for, so that a message made of them is shown whole."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant | ast.JoinedStr | ast.BinOp)
    }


def _text(node: ast.expr, texts: dict[str, ast.expr]) -> str:
    """Return an expression as a reader of the message would see it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, texts) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, texts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and not _is_number(node.right):
        return _text(node.left, texts) + _text(node.right, texts)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body, texts)} | {_text(node.orelse, texts)}"
    if isinstance(node, ast.Name) and node.id in texts:
        return _text(texts[node.id], {})
    shown = ast.unparse(node)
    return "{" + (shown if len(shown) <= _LONGEST_PLACEHOLDER else "...") + "}"


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _without_placeholders(message: str) -> str:
    depth, kept = 0, []
    for character in message:
        depth += (character == "{") - (character == "}")
        if depth == 0:
            kept.append(character)
    return "".join(kept)


def refusals_page(refusals: list[Refusal], words: dict[str, str]) -> str:
    """Return the page's tables in Markdown, a heading for each module, so that search leads to a short table.

    Args:
        refusals: what `collect_refusals` found.
        words: texts in the page's language: `message` and `failed`.
    """
    modules: dict[str, dict[tuple[str, str], None]] = {}
    for refusal in refusals:
        modules.setdefault(refusal.module, {})[refusal.message, refusal.kind] = None
    parts = []
    for module, messages in sorted(modules.items()):
        parts.append(f"## {module}\n")
        parts.append(f'<div class="refusals"><table><thead><tr><th>{words["message"]}</th></tr></thead><tbody>')
        for message, kind in messages:
            note = f"<br><small>{words['failed']}</small>" if kind == "failed" else ""
            parts.append(f"<tr><td>{html.escape(message)}{note}</td></tr>")
        parts.append("</tbody></table></div>\n")
    return "\n".join(parts)


def main() -> None:
    """Print every message, for a search in the terminal."""
    for refusal in collect_refusals():
        sys.stdout.write(f"{refusal.module}:{refusal.line}: {refusal.kind}: {refusal.message}\n")


if __name__ == "__main__":
    main()
