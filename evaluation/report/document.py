"""A page as a whole: one file, in which nothing is fetched and no name can bring a script in."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

from evaluation.report.element import element


def document(title: str, body: Element) -> str:
    """The text of a page with this body, in the report's style."""
    style, script = _verbatim("style", "page.css"), _verbatim("script", "page.js")
    body.append(script)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        _policy(style, script),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title} – Facestream"),
        style,
    )
    whole = element("html", head, body, lang="en")
    return "<!DOCTYPE html>\n" + tostring(whole, encoding="unicode", method="html") + "\n"


def _policy(*allowed: Element) -> Element:
    """Nothing is fetched, and no style or script but the page's own: a name cannot bring one in."""
    style, script = (
        f"'sha256-{base64.b64encode(hashlib.sha256(part.text.encode()).digest()).decode()}'"
        for part in allowed
    )
    return element(
        "meta",
        http_equiv="Content-Security-Policy",
        content=f"default-src 'none'; img-src data:; style-src {style}; script-src {script}; "
        "base-uri 'none'; form-action 'none'",
    )


def _verbatim(tag: str, file: str) -> Element:
    made = Element(tag)
    made.text = _own_file(file)
    return made


@cache
def _own_file(name: str) -> str:
    return (files("evaluation.report") / name).read_text(encoding="utf-8")
