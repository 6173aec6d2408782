"""URL routing."""

from .accept import best_match, parse_accept
from .pattern import Pattern, PatternError
from .query import build_query, parse_query
from .router import Match, MethodNotAllowed, NotFound, Router
from .urls import join_url, normalise_path

__all__ = [
    "Match",
    "MethodNotAllowed",
    "NotFound",
    "Pattern",
    "PatternError",
    "Router",
    "best_match",
    "build_query",
    "join_url",
    "normalise_path",
    "parse_accept",
    "parse_query",
]
