import unittest

from markline import render_inline
from markline.inline import plain_text


class InlineTest(unittest.TestCase):
    def test_emphasis_and_strong(self):
        self.assertEqual(render_inline("a *b* **c**"), "a <em>b</em> <strong>c</strong>")

    def test_nested_emphasis(self):
        self.assertEqual(render_inline("**a *b* c**"), "<strong>a <em>b</em> c</strong>")

    def test_text_is_escaped(self):
        self.assertEqual(render_inline("1 < 2 & 3"), "1 &lt; 2 &amp; 3")

    def test_code_span(self):
        self.assertEqual(render_inline("run `ls -l` now"), "run <code>ls -l</code> now")

    def test_lonely_backtick(self):
        self.assertEqual(render_inline("a ` b"), "a ` b")

    def test_link(self):
        self.assertEqual(
            render_inline("[docs](https://example.org/a)"), '<a href="https://example.org/a">docs</a>'
        )

    def test_link_with_title(self):
        self.assertEqual(
            render_inline('[docs](/a "The docs")'), '<a href="/a" title="The docs">docs</a>'
        )

    def test_dangerous_scheme(self):
        self.assertEqual(render_inline("[x](javascript:alert)"), '<a href="#">x</a>')

    def test_backslash(self):
        self.assertEqual(render_inline(r"\*not emphasis\*"), "*not emphasis*")

    def test_plain_text(self):
        self.assertEqual(plain_text("a *b* `c d`"), "a b c d")
