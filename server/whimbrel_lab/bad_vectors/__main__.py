"""`python -m whimbrel_lab.bad_vectors`: writes the file of cases."""

from __future__ import annotations

from pathlib import Path

from whimbrel_lab.bad_vectors import authority, members, messages, objects, openings, servers
from whimbrel_lab.bad_vectors.book import Book

PATH = Path(__file__).parents[3] / "schemas/vectors/bad.json"


def text() -> str:
    """The file: the same in every run."""
    book = Book("good and bad cases of version 1; the fleet's n_min is 4, as in the other files")
    for chapter in (objects, messages, authority, openings, members, servers):
        chapter.write(book)
    return book.text()


if __name__ == "__main__":
    PATH.write_text(text())
    print(f"{PATH}: {PATH.stat().st_size} bytes")
