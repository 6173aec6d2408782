"""Blocks to HTML."""

from .blocks import parse_blocks
from .escape import escape, escape_attribute
from .inline import render_inline
from .toc import slugify, table_of_contents


def render(text, toc=False):
    """HTML for a document; with ``toc`` its table of contents goes in front."""
    headings = []
    body = _render(parse_blocks(text), set(), headings)
    if toc and headings:
        return table_of_contents(headings) + "\n" + body
    return body


def _render(blocks, taken, headings):
    return "\n".join(_block(block, taken, headings) for block in blocks)


def _items(items):
    return "".join(f"<li>{render_inline(item)}</li>" for item in items)


def _block(block, taken, headings):
    kind = block[0]
    if kind == "heading":
        _, level, text = block
        slug = slugify(text, taken)
        headings.append((level, text, slug))
        return f'<h{level} id="{slug}">{render_inline(text)}</h{level}>'
    if kind == "paragraph":
        return f"<p>{render_inline(block[1])}</p>"
    if kind == "bullets":
        return f"<ul>{_items(block[1])}</ul>"
    if kind == "numbers":
        start = "" if block[1] == 1 else f' start="{block[1]}"'
        return f"<ol{start}>{_items(block[2])}</ol>"
    if kind == "quote":
        return f"<blockquote>{_render(block[1], taken, headings)}</blockquote>"
    if kind == "code":
        language = f' class="language-{escape_attribute(block[1])}"' if block[1] else ""
        return f"<pre><code{language}>{escape(block[2])}</code></pre>"
    if kind == "table":
        return _table(block[1])
    return "<hr>"


def _table(table):
    def row(cells, tag):
        html = ""
        for cell, align in zip(cells, table["align"]):
            style = f' style="text-align: {align}"' if align else ""
            html += f"<{tag}{style}>{render_inline(cell)}</{tag}>"
        return f"<tr>{html}</tr>"

    body = "".join(row(cells, "td") for cells in table["rows"])
    return f"<table><thead>{row(table['header'], 'th')}</thead><tbody>{body}</tbody></table>"
