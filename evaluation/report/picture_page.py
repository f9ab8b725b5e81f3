"""A page of pictures side by side, to be looked at: what was found, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from evaluation.report.document import document
from evaluation.report.element import element
from evaluation.report.html_table import facts
from evaluation.report.thumbnails import Pictures, Thumbnails

MOST_SHOWN = 300  # findings of a section: more make a page that no browser likes


@dataclass(frozen=True)
class Strip:
    """Pictures that belong together.

    Attributes:
        pictures: each as (where it is from, its name), as `Pictures` takes them.
        words: what is said of them, line by line, the first one in bold.
    """

    pictures: Sequence[tuple[str, str]]
    words: Sequence[str]


@dataclass(frozen=True)
class Section:
    """Findings of one kind, the clearest first."""

    title: str
    about: str
    strips: Sequence[Strip]


def picture_page(
    title: str,
    about_page: Mapping[str, str],
    sections: Sequence[Section],
    *,
    pictures: Pictures | None,
) -> str:
    """The page's text.

    Args:
        about_page: facts for the head of the page, by name.
        pictures: gives their encoded bytes; without it the page holds no picture of anyone.
    """
    thumbnails = Thumbnails(pictures)
    made = [_section(section, thumbnails) for section in sections if section.strips]
    held = (
        f"This page holds {thumbnails.count} pictures of people: show it only to those who may "
        "see them."
        if thumbnails.count
        else "This page holds no pictures of people."
    )
    header = element(
        "header",
        element("p", "Face recognition · data", class_="eyebrow"),
        element("h1", title),
        element("p", held, class_="subtitle"),
    )
    return document(
        title, element("body", header, element("main", facts(about_page.items()), *made))
    )


def _section(section: Section, thumbnails: Thumbnails) -> Element:
    shown = section.strips[:MOST_SHOWN]
    left = len(section.strips) - len(shown)
    return element(
        "section",
        element("h2", section.title),
        element("p", section.about, class_="subtitle"),
        element("p", f"The first {len(shown)}; {left:,} more are in the file.") if left else None,
        element(
            "ul",
            *(_strip(strip, thumbnails) for strip in shown),
            class_="pairs" if thumbnails.wanted else "pairs bare",
        ),
    )


def _strip(strip: Strip, thumbnails: Thumbnails) -> Element:
    faces = [thumbnails.show(*picture) for picture in strip.pictures] if thumbnails.wanted else []
    return element(
        "li",
        element("span", *faces, class_="faces") if faces else None,
        element("b", strip.words[0]),
        *(element("span", line, class_="image-name") for line in strip.words[1:]),
        class_="wide" if len(strip.pictures) > 2 else None,
    )
