"""Cache keys from call arguments."""

_KEYWORDS = ("tinycache.keywords",)


def _freeze(value):
    """A hashable stand-in for lists, sets and dictionaries, tagged with their kind."""
    if isinstance(value, dict):
        items = sorted(((repr(key), _freeze(item)) for key, item in value.items()))
        return ("dict", tuple(items))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, tuple(_freeze(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(_freeze(item) for item in value))
    return value


def make_key(args, kwargs, typed=False):
    """A hashable key for a call.

    Keyword order does not matter. With ``typed``, ``1`` and ``1.0`` make different keys.
    """
    key = tuple(_freeze(arg) for arg in args)
    if kwargs:
        key += _KEYWORDS
        for name in sorted(kwargs):
            key += (name, _freeze(kwargs[name]))
    if typed:
        key += tuple(type(arg).__name__ for arg in args)
        key += tuple(type(kwargs[name]).__name__ for name in sorted(kwargs))
    return key
