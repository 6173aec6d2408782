import unittest

from waymark import best_match, build_query, join_url, normalise_path, parse_accept, parse_query


class UrlsTest(unittest.TestCase):
    def test_parse_query(self):
        self.assertEqual(parse_query("?a=1&b=2&a=3&c"), {"a": ["1", "3"], "b": ["2"], "c": [""]})

    def test_parse_query_of_nothing(self):
        self.assertEqual(parse_query(""), {})

    def test_build_query(self):
        self.assertEqual(build_query({"a": [1, 2], "b": None, "c": "x y"}), "a=1&a=2&c=x+y")

    def test_normalise(self):
        self.assertEqual(normalise_path("/a//b/./c"), "/a/b/c")
        self.assertEqual(normalise_path("/a/b/"), "/a/b/")

    def test_join(self):
        self.assertEqual(join_url("http://x/", "/a/", "b"), "http://x/a/b")


class AcceptTest(unittest.TestCase):
    def test_quality_orders(self):
        self.assertEqual(
            parse_accept("text/html;q=0.5, application/json"), [("application/json", 1.0), ("text/html", 0.5)]
        )

    def test_best_match(self):
        self.assertEqual(best_match("text/html;q=0.5, application/json", ["text/html", "application/json"]), "application/json")

    def test_nothing_fits(self):
        self.assertIsNone(best_match("image/png", ["text/html"]))

    def test_no_header(self):
        self.assertEqual(best_match("", ["text/html"]), "text/html")
