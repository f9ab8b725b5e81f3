"""Elements of a page. Text is escaped where it is written, so that no name can be markup."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from evaluation.report.figure_text import plain

Content = Element | str | None


def element(tag: str, *content: Content, **attributes: str | int | float | None) -> Element:
    """An element of text and elements in order; None is left out, as content and as attribute.

    Attributes are written with _ for -, and with a _ behind where Python has the word: `class_`.
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = f"{value:g}" if isinstance(value, float) else plain(value)
            made.set(name.rstrip("_").replace("_", "-") if name != "viewBox" else name, text)
    last: Element | None = None
    for part in content:
        if isinstance(part, Element):
            made.append(part)
            last = part
        elif part is not None and last is None:
            made.text = (made.text or "") + plain(part)
        elif part is not None:
            last.tail = (last.tail or "") + plain(part)
    return made
