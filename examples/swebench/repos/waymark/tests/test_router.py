import unittest

from waymark import Match, MethodNotAllowed, NotFound, Router


class RouterTest(unittest.TestCase):
    def setUp(self):
        self.router = Router()
        self.router.add("GET", "/users", "list", name="users")
        self.router.add("POST", "/users", "create")
        self.router.add("GET", "/users/<int:id>", "show", name="user")

    def test_match(self):
        self.assertEqual(self.router.match("GET", "/users/7"), Match("show", {"id": 7}))

    def test_method(self):
        self.assertEqual(self.router.match("post", "/users").target, "create")

    def test_not_found(self):
        with self.assertRaises(NotFound):
            self.router.match("GET", "/nothing")

    def test_method_not_allowed(self):
        with self.assertRaises(MethodNotAllowed) as caught:
            self.router.match("DELETE", "/users")
        self.assertEqual(caught.exception.allowed, ["GET", "POST"])

    def test_head_uses_get(self):
        self.assertEqual(self.router.match("HEAD", "/users").target, "list")

    def test_url(self):
        self.assertEqual(self.router.url("user", id=3), "/users/3")

    def test_mount(self):
        outer = Router()
        outer.mount("/api", self.router)
        self.assertEqual(outer.match("GET", "/api/users").target, "list")
