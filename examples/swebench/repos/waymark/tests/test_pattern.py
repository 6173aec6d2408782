import unittest

from waymark import Pattern, PatternError


class PatternTest(unittest.TestCase):
    def test_literal(self):
        self.assertEqual(Pattern("/about").match("/about"), {})
        self.assertIsNone(Pattern("/about").match("/contact"))

    def test_converters(self):
        pattern = Pattern("/users/<int:id>/colour/<hex:value>")
        self.assertEqual(pattern.match("/users/7/colour/ff"), {"id": 7, "value": 255})
        self.assertIsNone(pattern.match("/users/x/colour/ff"))

    def test_path_converter_takes_slashes(self):
        self.assertEqual(Pattern("/files/<path:name>").match("/files/a/b.txt"), {"name": "a/b.txt"})

    def test_encoded_parameter(self):
        self.assertEqual(Pattern("/tags/<tag>").match("/tags/c%2B%2B"), {"tag": "c++"})

    def test_build(self):
        self.assertEqual(Pattern("/users/<int:id>").build(id=7), "/users/7")

    def test_build_with_missing_or_extra(self):
        with self.assertRaises(KeyError):
            Pattern("/users/<int:id>").build()
        with self.assertRaises(TypeError):
            Pattern("/users").build(id=1)

    def test_bad_patterns(self):
        for source in ("users", "/<nope:x>", "/<a>/<a>"):
            with self.subTest(source=source), self.assertRaises(PatternError):
                Pattern(source)
