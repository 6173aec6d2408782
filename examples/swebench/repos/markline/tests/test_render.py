import unittest

from markline import render, slugify


class RenderTest(unittest.TestCase):
    def test_heading_has_an_anchor(self):
        self.assertEqual(render("# Hello *there*"), '<h1 id="hello-there">Hello <em>there</em></h1>')

    def test_equal_headings_get_different_anchors(self):
        html = render("# A\n\n# A")
        self.assertIn('id="a"', html)
        self.assertIn('id="a-2"', html)

    def test_code_is_escaped(self):
        self.assertEqual(render("```\n<b>\n```"), "<pre><code>&lt;b&gt;</code></pre>")

    def test_ordered_list_start(self):
        self.assertEqual(render("3. x"), '<ol start="3"><li>x</li></ol>')

    def test_contents_of_flat_headings(self):
        html = render("# A\n\n# B", toc=True)
        self.assertEqual(
            html.splitlines()[0],
            '<ul><li><a href="#a">A</a></li><li><a href="#b">B</a></li></ul>',
        )

    def test_slug_of_nothing(self):
        self.assertEqual(slugify("!!!"), "section")
