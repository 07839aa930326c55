"""Roles: the defaults, ROLES_FILE with all its faults, and which models a pattern allows."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

from gateway.configuration import ConfigurationError
from gateway.keys.auth import Identity
from gateway.keys.roles import DEFAULT_ROLES, PERMISSIONS, Role, load_roles, model_allowed


class DefaultRolesTest(unittest.TestCase):
    def test_what_each_default_role_may_do(self) -> None:
        allowed = {"admin": set(PERMISSIONS), "user": {"infer", "verify", "batch"}, "viewer": {"metrics"}}
        self.assertEqual(set(DEFAULT_ROLES), set(allowed))
        for name, permissions in allowed.items():
            for permission in PERMISSIONS:
                with self.subTest(name, permission=permission):
                    self.assertEqual(DEFAULT_ROLES[name].allows(permission), permission in permissions)
        self.assertTrue(DEFAULT_ROLES["admin"].may_set_priority and DEFAULT_ROLES["admin"].may_skip_cache)
        self.assertFalse(DEFAULT_ROLES["user"].may_set_priority or DEFAULT_ROLES["user"].may_skip_cache)


class ModelAllowedTest(unittest.TestCase):
    def test_patterns(self) -> None:
        for patterns, model, allowed in (
            ((), "13b", True),
            (("13b",), "13b", True),
            (("13b",), "13b-chat", False),
            (("13b",), "13B", False),
            (("13b*",), "13b-chat", True),
            (("13b*",), "x13b", False),
            (("7b", "1?b"), "13b", True),
            (("1?b",), "1b", False),
            (("[17]b",), "7b", True),
            (("[17]b",), "3b", False),
            (("[7-1]b",), "7b", False),  # up to Python 3.10 an error whenever it is looked at
            (("[7-1]b", "7?"), "7b", True),
            (("a[1]",), "a[1]", True),
            (("*",), "any/model:latest", True),
            (("org/*",), "org/a\nb", True),
            (("13b",), "", False),
        ):
            with self.subTest(patterns=patterns, model=model):
                self.assertIs(model_allowed(patterns, model), allowed)
                self.assertIs(Role("r", frozenset(), patterns).allows_model(model), allowed)


class NamesTest(unittest.TestCase):
    def test_any_of_a_models_names_may_be_the_one_that_is_allowed(self) -> None:
        for patterns, allowed in (
            ((), True),
            (("13b",), True),
            (("default-chat",), True),
            (("default-*",), True),
            (("old-name", "x"), True),
            (("13b-chat", "Default-Chat"), False),
            (("7*",), False),
        ):
            with self.subTest(patterns=patterns):
                self.assertIs(model_allowed(patterns, "13b", "default-chat", "old-name"), allowed)
                self.assertIs(Role("r", frozenset(), patterns).allows_model("13b", "default-chat", "old-name"), allowed)

    def test_a_role_and_a_key_may_each_know_the_model_by_another_name(self) -> None:
        role = Role("r", frozenset(), ("13b",))
        identity = Identity("alice", "r", role, ("default-chat",))
        self.assertTrue(identity.may_use("13b", "default-chat"))
        self.assertFalse(identity.may_use("13b"))
        self.assertFalse(identity.may_use("7b", "default-chat"))
        self.assertFalse(identity.may_use_all or identity._replace(models=()).may_use_all)
        self.assertTrue(Identity("alice", "r", Role("r", frozenset())).may_use_all)


class LoadRolesTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "roles.json"

    def load(self, content: Any) -> Any:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.path.write_bytes(raw)
        return load_roles(self.path)

    def faults(self, content: Any) -> tuple[str, ...]:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(content)
        return caught.exception.faults

    def test_the_files_roles_join_and_replace_the_defaults(self) -> None:
        roles = self.load(
            {
                "batcher": {"permissions": ["batch", "metrics"], "models": ["7b", "13b*"], "may_skip_cache": True},
                "user": {"permissions": [], "may_set_priority": True},
            }
        )
        self.assertEqual(set(roles), {"admin", "user", "viewer", "batcher"})
        self.assertEqual(
            roles["batcher"], Role("batcher", frozenset({"batch", "metrics"}), ("7b", "13b*"), may_skip_cache=True)
        )
        self.assertEqual(roles["user"], Role("user", frozenset(), may_set_priority=True))
        self.assertEqual(roles["admin"], DEFAULT_ROLES["admin"])
        self.assertEqual(DEFAULT_ROLES["user"].permissions, {"infer", "verify", "batch"})
        with self.assertRaises(TypeError):
            roles["admin"] = roles["user"]

    def test_every_fault_is_named_at_once(self) -> None:
        content = b"""{"a": {"permissions": ["infer", "fly", "infer", 3], "models": "7b", "colour": 1},
            "b c": {"permissions": null, "may_skip_cache": "yes"}, "d": [], "e": {"models": []}, "e": {},
            "f": {"permissions": [], "models": ["7b,13b", "7b", "7b", ""], "permissions": []}}"""
        self.assertEqual(
            self.faults(content),
            (
                "e: is there more than once",
                'a.permissions[1]: must be one of infer, verify, batch, metrics, admin, not "fly"',
                'a.permissions[2]: "infer" is named twice',
                "a.permissions[3]: must be one of infer, verify, batch, metrics, admin, not 3",
                'a.models: must be a list, not "7b"',
                "a.colour: is not a known key; known here: permissions, models, may_set_priority, may_skip_cache",
                '["b c"]: the name must be 1 to 64 of A-Z a-z 0-9 . _ @ + -',
                '["b c"].permissions: must be a list, not null',
                '["b c"].may_skip_cache: must be true or false, not "yes"',
                "d: must be an object, not []",
                "e.permissions: is missing",
                "f.permissions: is there more than once",
                'f.models[0]: must be a model\'s name or a pattern such as 13b*, not "7b,13b"',
                'f.models[2]: "7b" is named twice',
                'f.models[3]: must be a model\'s name or a pattern such as 13b*, not ""',
            ),
        )

    def test_an_empty_list_of_models_does_not_mean_all(self) -> None:
        (fault,) = self.faults({"a": {"permissions": [], "models": []}})
        self.assertIn("a.models: must name at least one pattern", fault)

    def test_a_file_that_is_no_json_object_is_refused(self) -> None:
        for content, words in (
            (b"", "line 1 column 1"),
            (b"{}", "at least one role"),
            (b"[]", "must be an object"),
            (b'"admin"', "must be an object"),
            (b"\xff{}", "is not UTF-8: byte 0"),
            (b'{"a": NaN}', "NaN is not a JSON value"),
            (b"[" * 200_000, "is nested too deeply"),
        ):
            with self.subTest(content[:10]):
                (fault,) = self.faults(content)
                self.assertIn("the file", fault)
                self.assertIn(words, fault)
        self.path.unlink()
        with self.assertRaisesRegex(ConfigurationError, "cannot be read: No such file"):
            load_roles(self.path)


if __name__ == "__main__":
    unittest.main()
