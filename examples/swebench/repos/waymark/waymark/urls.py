"""Paths and joined addresses."""


def normalise_path(path):
    """Resolve ``.`` and ``..`` and drop double slashes; never climbs above the root.

    A slash at the end is kept.
    """
    parts = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if parts:
                parts.pop()
        else:
            parts.append(part)
    result = "/" + "/".join(parts)
    if parts and path.endswith(("/", "/.", "/..")):
        result += "/"
    return result


def join_url(base, *parts):
    """Join with exactly one slash in between; the query of ``base`` stays at the end."""
    base, mark, query = base.partition("?")
    url = base
    for part in parts:
        url = url.rstrip("/") + "/" + part.lstrip("/")
    return url + mark + query
