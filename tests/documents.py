"""Documents as tests read them: fenced blocks by language, tables, what stands between backticks, headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    {path for glob in ("*.md", "[!.]*/README.md", "docs/*.md", "deploy/**/*.md") for path in ROOT.glob(glob)}
)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a document, in order."""
    text = path.read_text()
    name = str(path.relative_to(ROOT))
    return [Block(name, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _FENCED.finditer(text)]


def without_blocks(text: str) -> str:
    """Prose and tables alone."""
    return _FENCED.sub("", text)


def code(text: str) -> list[str]:
    """What stands between backticks, fenced blocks left out."""
    return re.findall("`([^`]+)`", without_blocks(text))


def table(text: str, first_heading: str) -> list[list[str]]:
    """The rows of the first table that begins with this heading, cell by cell."""
    start = text.index(f"| {first_heading} |")
    rows = text[start:].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def anchors(text: str) -> set[str]:
    """What links to headings end in."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
