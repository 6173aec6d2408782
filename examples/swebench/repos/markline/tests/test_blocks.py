import unittest

from markline import parse_blocks


class BlocksTest(unittest.TestCase):
    def test_heading_and_paragraph(self):
        self.assertEqual(
            parse_blocks("# One\n\ntwo\nthree\n"), [("heading", 1, "One"), ("paragraph", "two three")]
        )

    def test_closing_marks_of_a_heading(self):
        self.assertEqual(parse_blocks("## Two ##"), [("heading", 2, "Two")])

    def test_bullets(self):
        self.assertEqual(parse_blocks("- a\n- b\n"), [("bullets", ["a", "b"])])

    def test_bullet_continued(self):
        self.assertEqual(parse_blocks("- a\n  more\n- b"), [("bullets", ["a more", "b"])])

    def test_numbers(self):
        self.assertEqual(parse_blocks("3. a\n4. b"), [("numbers", 3, ["a", "b"])])

    def test_quote(self):
        self.assertEqual(parse_blocks("> a\n> b"), [("quote", [("paragraph", "a b")])])

    def test_rule(self):
        self.assertEqual(parse_blocks("---"), [("rule",)])

    def test_fenced_code(self):
        self.assertEqual(parse_blocks("```python\nx = 1\n\ny = 2\n```"), [("code", "python", "x = 1\n\ny = 2")])

    def test_table(self):
        blocks = parse_blocks("a | b\n--- | ---:\n1 | 2\n")
        self.assertEqual(
            blocks, [("table", {"header": ["a", "b"], "align": [None, "right"], "rows": [["1", "2"]]})]
        )

    def test_short_row_is_filled(self):
        blocks = parse_blocks("a | b\n--- | ---\n1 |\n")
        self.assertEqual(blocks[0][1]["rows"], [["1", ""]])
