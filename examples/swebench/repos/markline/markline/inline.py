"""Inline markup: code spans, links, strong, emphasis."""

import re

from .escape import escape, escape_attribute, safe_url

_TOKEN = re.compile(
    r"(?P<escaped>\\[\\`*_\[\]()#|!-])"
    r"|(?P<code>`+)"
    r"|(?P<link>\[(?P<text>[^\]]*)\]\((?P<url>[^)\s]*)(?:\s+\"(?P<title>[^\"]*)\")?\))"
    r"|(?P<strong>\*\*(?=\S)(?P<bold>.+?)(?<=\S)\*\*)"
    r"|(?P<emphasis>\*(?=\S)(?P<slanted>.+?)(?<=\S)\*)"
)


def _link(match):
    title = match["title"]
    attributes = f'href="{escape_attribute(safe_url(match["url"]))}"'
    if title:
        attributes += f' title="{escape_attribute(title)}"'
    return f"<a {attributes}>{render_inline(match['text'])}</a>"


def render_inline(text):
    """HTML for one run of text; what is not markup is escaped."""
    parts = []
    position = 0
    while position < len(text):
        match = _TOKEN.search(text, position)
        if match is None:
            break
        parts.append(escape(text[position : match.start()]))
        position = match.end()
        if match["escaped"]:
            parts.append(escape(match["escaped"][1]))
        elif match["code"]:
            fence = match["code"]
            closing = _closing_fence(text, position, len(fence))
            if closing is None:
                parts.append(fence)
                continue
            parts.append(f"<code>{escape(_trim_code(text[position:closing]))}</code>")
            position = closing + len(fence)
        elif match["link"]:
            parts.append(_link(match))
        elif match["strong"]:
            parts.append(f"<strong>{render_inline(match['bold'])}</strong>")
        else:
            parts.append(f"<em>{render_inline(match['slanted'])}</em>")
    parts.append(escape(text[position:]))
    return "".join(parts)


def _closing_fence(text, position, length):
    """Start of the run of exactly ``length`` backticks after ``position``; None when there is none."""
    for match in re.finditer(r"`+", text[position:]):
        if len(match.group()) == length:
            return position + match.start()
    return None


def _trim_code(code):
    """One space on both sides is padding, unless the span holds nothing but spaces."""
    if code.startswith(" ") and code.endswith(" ") and code.strip():
        return code[1:-1]
    return code


def plain_text(text):
    """The text without its markup."""
    html = render_inline(text)
    stripped = re.sub(r"<[^>]*>", "", html)
    return stripped.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
