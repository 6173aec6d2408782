"""Escaping of text and attributes."""


def escape(text):
    """Text content: the three characters that HTML would read as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def escape_attribute(text):
    """A double-quoted attribute value."""
    return escape(text).replace('"', "&quot;")


def safe_url(url):
    """The address, or ``#`` when its scheme could run code."""
    scheme = url.strip().split(":", 1)[0].lower() if ":" in url else ""
    if scheme in ("javascript", "vbscript", "data"):
        return "#"
    return url.strip()
