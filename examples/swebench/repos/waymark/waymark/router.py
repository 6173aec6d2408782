"""Routes and their lookup."""

from .pattern import Pattern


class NotFound(LookupError):
    """No route has this path."""


class MethodNotAllowed(LookupError):
    """The path is known, the method is not; ``allowed`` is sorted."""

    def __init__(self, method, allowed):
        super().__init__(f"{method} is not allowed, {', '.join(allowed)} would be")
        self.allowed = allowed


class Match:
    """What a lookup found."""

    def __init__(self, target, params):
        self.target = target
        self.params = params

    def __repr__(self):
        return f"Match(target={self.target!r}, params={self.params!r})"

    def __eq__(self, other):
        if not isinstance(other, Match):
            return NotImplemented
        return (self.target, self.params) == (other.target, other.params)


class Router:
    """Routes, most specific first whatever the order in which they were added."""

    def __init__(self, prefix=""):
        self.prefix = prefix.rstrip("/")
        self._routes = []
        self._names = {}

    def add(self, method, source, target, name=None):
        """Add a route; ``name`` makes it available to ``url``."""
        pattern = Pattern(self.prefix + source)
        self._routes.append((pattern, method.upper(), target))
        self._routes.sort(key=lambda route: route[0].rank)
        if name is not None:
            if name in self._names:
                raise ValueError(f"two routes named {name!r}")
            self._names[name] = pattern

    def mount(self, prefix, other):
        """Add all routes of another router below ``prefix``."""
        for pattern, method, target in other._routes:
            self.add(method, prefix.rstrip("/") + pattern.source, target)

    def match(self, method, path):
        """The match; raises NotFound or MethodNotAllowed. HEAD is answered by GET routes."""
        method = method.upper()
        allowed = set()
        for pattern, route_method, target in self._routes:
            params = pattern.match(path)
            if params is None:
                continue
            if route_method == method or (method == "HEAD" and route_method == "GET"):
                return Match(target, params)
            allowed.add(route_method)
        if allowed:
            raise MethodNotAllowed(method, sorted(allowed))
        raise NotFound(path)

    def url(self, name, **params):
        """The path of a named route."""
        return self._names[name].build(**params)
