"""Path patterns: ``/users/<int:id>/files/<path:name>``."""

import re
from urllib.parse import quote, unquote

_FIELD = re.compile(r"<(?:(?P<converter>\w+):)?(?P<name>[a-zA-Z_]\w*)>")

_CONVERTERS = {
    "str": (r"[^/]+", str, lambda value: quote(str(value), safe="")),
    "int": (r"\d+", int, lambda value: str(int(value))),
    "hex": (r"[0-9a-fA-F]+", lambda text: int(text, 16), lambda value: f"{value:x}"),
    "path": (r".+", str, lambda value: quote(str(value), safe="/")),
}
_RANK = {"int": 1, "hex": 2, "str": 3, "path": 4}


class PatternError(ValueError):
    """The pattern can't be used."""


class Pattern:
    """A compiled pattern.

    ``match`` gives the converted parameters of a raw (percent-encoded) path, ``build`` the path for
    parameters.
    """

    def __init__(self, source):
        if not source.startswith("/"):
            raise PatternError(f"{source!r} does not begin with a slash")
        self.source = source
        self._fields = {}
        self._parts = []
        self._regex = re.compile(self._compile())

    def __repr__(self):
        return f"Pattern({self.source!r})"

    def _compile(self):
        regex = ""
        position = 0
        for field in _FIELD.finditer(self.source):
            literal = self.source[position : field.start()]
            converter, name = field["converter"] or "str", field["name"]
            if converter not in _CONVERTERS:
                raise PatternError(f"unknown converter {converter!r} in {self.source!r}")
            if name in self._fields:
                raise PatternError(f"{name!r} occurs twice in {self.source!r}")
            self._fields[name] = converter
            self._parts += [literal, name]
            regex += re.escape(literal) + f"(?P<{name}>{_CONVERTERS[converter][0]})"
            position = field.end()
        rest = self.source[position:]
        self._parts.append(rest)
        return regex + re.escape(rest)

    @property
    def rank(self):
        """Sorts patterns: literal segments come before converters, narrow converters before wide ones."""
        ranks = []
        for segment in self.source.strip("/").split("/"):
            fields = [field["converter"] or "str" for field in _FIELD.finditer(segment)]
            ranks.append(max((_RANK[converter] for converter in fields), default=0))
        return tuple(ranks)

    def match(self, path):
        """Parameters by name, or None when the path does not fit as a whole."""
        found = self._regex.fullmatch(path)
        if found is None:
            return None
        params = {}
        for name, text in found.groupdict().items():
            params[name] = _CONVERTERS[self._fields[name]][1](unquote(text))
        return params

    def build(self, **params):
        """The path for these parameters; KeyError names a missing one, TypeError superfluous ones."""
        extra = set(params) - set(self._fields)
        if extra:
            raise TypeError(f"{self.source!r} has no {', '.join(sorted(extra))}")
        path = ""
        for index, part in enumerate(self._parts):
            if index % 2:
                path += _CONVERTERS[self._fields[part]][2](params[part])
            else:
                path += part
        return path
