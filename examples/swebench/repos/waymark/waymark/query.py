"""Query strings."""

from urllib.parse import quote_plus, unquote_plus


def parse_query(text):
    """``a=1&b=2&a=3`` -> ``{"a": ["1", "3"], "b": ["2"]}``; a name without ``=`` has an empty value."""
    values = {}
    for pair in text.lstrip("?").split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        values.setdefault(unquote_plus(name), []).append(unquote_plus(value))
    return values


def build_query(params):
    """The reverse; lists give several pairs, None is left out, booleans are ``true`` and ``false``."""
    pairs = []
    for name, value in params.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            if item is None:
                continue
            if isinstance(item, bool):
                item = "true" if item else "false"
            pairs.append(f"{quote_plus(str(name))}={quote_plus(str(item))}")
    return "&".join(pairs)
