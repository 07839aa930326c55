"""What a request of /api/v1/inference may hold: each field, what it means, and how a fault in it is told."""

from __future__ import annotations

import unittest
from typing import Any, Callable, Optional

from gateway.errors import RequestRefused
from gateway.upstream.call import CHAT
from gateway.upstream.fields import BY_PATH
from gateway.verify import question
from gateway.verify.question import (
    FIELDS,
    INPUTS_MAX,
    MODELS_MAX,
    TESTS_MAX,
    TEXT_MAX,
    Ceilings,
    RunLimits,
    check_entry_point,
    check_execution_config,
    check_fields,
    check_flag,
    check_inputs,
    check_models,
    check_prompt,
    check_tests,
)

CEILINGS = Ceilings(30.0, 256 << 20)


def check(key: str, value: object) -> Optional[tuple[str, str]]:
    return BY_PATH[CHAT].optional[key](value)


class QuestionCase(unittest.TestCase):
    def assert_refused(self, call: Callable[[], Any], code: str, param: str) -> str:
        with self.assertRaises(RequestRefused) as caught:
            call()
        error = caught.exception
        self.assertEqual((error.code, error.param, error.status), (code, param, 400))
        return error.message


class PromptTest(QuestionCase):
    def test_it_is_a_text_with_something_in_it(self) -> None:
        self.assertEqual(check_prompt({"prompt": " hi "}), " hi ")
        for request in ({}, {"prompt": None}, {"prompt": ""}, {"prompt": " \n"}, {"prompt": 5}, {"prompt": ["a"]}):
            self.assert_refused(lambda request=request: check_prompt(request), "invalid_prompt", "prompt")  # type: ignore[misc]


class ModelsTest(QuestionCase):
    def test_without_names_all_that_are_known_are_asked(self) -> None:
        for request in ({}, {"models": None}):
            self.assertEqual(check_models(request, ["a", "b"]), ["a", "b"])

    def test_of_very_many_that_are_known_only_so_many(self) -> None:
        known = [str(number) for number in range(MODELS_MAX + 5)]
        self.assertEqual(check_models({}, known), known[:MODELS_MAX])

    def test_they_are_asked_in_the_order_given(self) -> None:
        self.assertEqual(check_models({"models": ["b", "a"]}, ["a", "b"]), ["b", "a"])

    def test_what_is_no_list_of_names_is_refused(self) -> None:
        too_many = [str(number) for number in range(MODELS_MAX + 1)]
        for value in ([], "a", {}, 5, [5], [""], [None], ["a", 5], too_many, True):
            with self.subTest(value):
                self.assert_refused(
                    lambda value=value: check_models({"models": value}, ["a"]), "invalid_models", "models"
                )  # type: ignore[misc]


class FlagTest(QuestionCase):
    def test_it_is_true_or_false(self) -> None:
        self.assertEqual([check_flag({"verify": v}, "verify", True) for v in (True, False, None)], [True, False, True])
        self.assertEqual([check_flag({}, "verify", default) for default in (True, False)], [True, False])
        for value in (0, 1, "true", [], {}):
            self.assert_refused(
                lambda value=value: check_flag({"verify": value}, "verify", True), "invalid_body", "verify"
            )  # type: ignore[misc]


class EntryPointTest(QuestionCase):
    def test_it_is_the_name_of_a_function(self) -> None:
        for name in ("f", "_f9", "$", "camelCase", "x" * 100):
            self.assertEqual(check_entry_point({"entry_point": name}), name)
        self.assertIsNone(check_entry_point({}))
        self.assertIsNone(check_entry_point({"entry_point": None}))

    def test_anything_that_could_be_more_is_refused(self) -> None:
        for name in ("", "9f", "f()", "a.b", "f\n", "f g", "f;import os", "x" * 101, 5, True, ["f"], "\u0434"):
            with self.subTest(name):
                self.assert_refused(
                    lambda name=name: check_entry_point({"entry_point": name}), "invalid_body", "entry_point"
                )  # type: ignore[misc]


class InputsTest(QuestionCase):
    def assert_inputs_refused(self, value: Any, param: str) -> None:
        self.assert_refused(lambda: check_inputs({"inputs": value}), "invalid_inputs", param)

    def test_each_is_the_arguments_of_a_call(self) -> None:
        inputs = [[1, "a"], [], [[1, 2]], [None, True, 1.5, {"k": []}]]
        self.assertEqual(check_inputs({"inputs": inputs}), tuple(inputs))
        self.assertEqual(check_inputs({}), ())
        self.assertEqual(check_inputs({"inputs": None}), ())
        self.assertEqual(check_inputs({"inputs": []}), ())

    def test_what_is_no_list_of_lists_is_refused_where_it_stands(self) -> None:
        for value in ("ab", {}, 5, True):
            self.assert_inputs_refused(value, "inputs")
        self.assert_inputs_refused([[1], 2], "inputs[1]")
        self.assert_inputs_refused([[1], "ab"], "inputs[1]")
        self.assert_inputs_refused([{"a": 1}], "inputs[0]")

    def test_there_are_not_too_many_and_they_are_not_too_long(self) -> None:
        self.assertEqual(len(check_inputs({"inputs": [[1]] * INPUTS_MAX})), INPUTS_MAX)
        self.assert_inputs_refused([[1]] * (INPUTS_MAX + 1), "inputs")
        self.assert_inputs_refused([["x" * TEXT_MAX]], "inputs")


class TestsTest(QuestionCase):
    def assert_tests_refused(self, value: Any, param: str, entry_point: Optional[str] = None) -> None:
        self.assert_refused(lambda: check_tests({"tests": value}, entry_point), "invalid_tests", param)

    def test_a_text_is_a_program_that_asserts(self) -> None:
        self.assertEqual(check_tests({"tests": "assert f(1) == 2"}, None), (("assert f(1) == 2",), ()))
        self.assertEqual(check_tests({"tests": ["assert 1", "assert 2"]}, "f"), (("assert 1", "assert 2"), ()))
        self.assertEqual(check_tests({}, None), ((), ()))
        self.assertEqual(check_tests({"tests": None}, None), ((), ()))

    def test_a_pair_of_texts_is_what_a_program_reads_and_prints(self) -> None:
        pairs = [{"input": "1\n", "output": "2\n"}, {"input": "", "output": ""}]
        self.assertEqual(check_tests({"tests": pairs}, None), ((), tuple(pairs)))
        self.assertEqual(check_tests({"tests": ["assert 1", pairs[0]]}, None), (("assert 1",), (pairs[0],)))

    def test_a_pair_with_an_entry_point_is_a_call(self) -> None:
        cases: list[tuple[Any, Any, str]] = [
            ([1, 2], 3, "assert f(1, 2) == 3"),
            ("a", "b", "assert f('a') == 'b'"),
            ({"k": [1]}, None, "assert f({'k': [1]}) == None"),
            ([], True, "assert f() == True"),
            ([[1, 2]], [2, 1], "assert f([1, 2]) == [2, 1]"),
            ("'); import os; ('", 1, """assert f("'); import os; ('") == 1"""),
        ]
        for given, output, expected in cases:
            with self.subTest(given):
                tests = check_tests({"tests": [{"input": given, "output": output}]}, "f")
                self.assertEqual(tests, ((expected,), ()))

    def test_a_pair_of_values_needs_an_entry_point(self) -> None:
        for pair in ({"input": [1], "output": "2"}, {"input": "1", "output": 2}):
            self.assert_tests_refused(["assert 1", pair], "tests[1]")

    def test_what_is_neither_is_refused_where_it_stands(self) -> None:
        for value in ([], {}, 5, True, {"input": "a", "output": "b"}):
            self.assert_tests_refused(value, "tests")
        for item in (
            "",
            " ",
            5,
            None,
            ["a"],
            {"input": "a"},
            {"output": "a"},
            {"input": "a", "output": "b", "x": 1},
            {},
        ):
            self.assert_tests_refused(["assert 1", item], "tests[1]")
            self.assert_tests_refused(["assert 1", item], "tests[1]", "f")
        self.assert_tests_refused("", "tests[0]")

    def test_there_are_not_too_many_and_they_are_not_too_long(self) -> None:
        self.assertEqual(len(check_tests({"tests": ["assert 1"] * TESTS_MAX}, None).sources), TESTS_MAX)
        self.assert_tests_refused(["assert 1"] * (TESTS_MAX + 1), "tests")
        self.assert_tests_refused("x" * (TEXT_MAX + 1), "tests")
        half = "x" * (TEXT_MAX // 2)
        self.assertEqual(len(check_tests({"tests": [half, half]}, None).sources), 2)
        self.assert_tests_refused([half, half, "y"], "tests")
        self.assert_tests_refused([{"input": half, "output": half + "y"}], "tests")


class ExecutionConfigTest(QuestionCase):
    def limits(self, **config: Any) -> RunLimits:
        return check_execution_config({"execution_config": config}, CEILINGS)

    def assert_config_refused(self, param: str, **config: Any) -> None:
        where = f"execution_config.{param}"
        message = self.assert_refused(lambda: self.limits(**config), "invalid_execution_config", where)
        self.assertTrue(message.startswith(where), message)

    def test_without_it_a_run_may_take_what_any_may(self) -> None:
        for request in ({}, {"execution_config": None}, {"execution_config": {}}):
            self.assertEqual(check_execution_config(request, CEILINGS), RunLimits(30.0, 256 << 20, 1.0))

    def test_the_example_of_the_contract(self) -> None:
        asked = self.limits(timeout=30, memory_limit="256m", cpu_limit=0.5, network_disabled=True)
        self.assertEqual(asked, RunLimits(30.0, 256 << 20, 0.5))

    def test_nobody_gets_more_than_the_ceilings(self) -> None:
        self.assertEqual(self.limits(timeout=31, memory_limit="1g", cpu_limit=4), RunLimits(30.0, 256 << 20, 1.0))
        self.assertEqual(self.limits(timeout=1e9, memory_limit="999999999g"), RunLimits(30.0, 256 << 20, 1.0))

    def test_less_is_given_as_asked(self) -> None:
        self.assertEqual(self.limits(timeout=0.1, memory_limit="1m", cpu_limit=0.01), RunLimits(0.1, 1 << 20, 0.01))

    def test_sizes_are_read_as_containers_read_them(self) -> None:
        for text, size in (
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            (" 64 MB ", 64 << 20),
            ("64MiB", 64 << 20),
            ("65536k", 64 << 20),
            (str(64 << 20), 64 << 20),
            (64 << 20, 64 << 20),
        ):
            with self.subTest(text):
                self.assertEqual(self.limits(memory_limit=text).memory_bytes, size)

    def test_what_is_no_amount_is_refused_where_it_stands(self) -> None:
        for value in (0, 0.05, -1, "30", True, [], float("nan"), float("inf"), 2e9):
            self.assert_config_refused("timeout", timeout=value)
        for value in (0, -1, "1", False, float("nan")):
            self.assert_config_refused("cpu_limit", cpu_limit=value)
        for value in ("", "1023k", "64x", "m", "-64m", "6.5m", 64, 0, -1, True, 1.5e9, [], 1 << 60, "9" * 10 + "g"):
            with self.subTest(value):
                self.assert_config_refused("memory_limit", memory_limit=value)
        for value in (False, 0, 1, "true"):
            self.assert_config_refused("network_disabled", network_disabled=value)
        self.assert_config_refused("gpu", gpu=1)

    def test_it_is_told_what_is_allowed(self) -> None:
        for config, said in (
            ({"timeout": 1e300}, "must be a number from 0.1 to 1000000000"),
            ({"timeout": 0}, "must be a number from 0.1 to 1000000000"),
            ({"timeout": "30"}, "must be a number from 0.1 to 1000000000"),
            ({"cpu_limit": 10**400}, "must be a number from 0.01 to 1000000000"),
            ({"memory_limit": 1 << 60}, "from 1 MiB to below 1 EiB"),
            ({"memory_limit": "9999999999g"}, "from 1 MiB to below 1 EiB"),
            ({"memory_limit": 256}, "a number of bytes"),
            ({"memory_limit": 2.5}, 'a text such as "256m"'),
            ({"network_disabled": False}, "must be true"),
        ):
            (param,) = config
            where = f"execution_config.{param}"
            message = self.assert_refused(
                lambda config=config: self.limits(**config),  # type: ignore[misc]
                "invalid_execution_config",
                where,
            )
            self.assertIn(said, message)

    def test_a_stranger_key_is_shown_in_part(self) -> None:
        message = self.assert_refused(
            lambda: self.limits(**{"k" * 500: 1}), "invalid_execution_config", "execution_config." + "k" * 40
        )
        self.assertLess(len(message), 200)

    def test_it_is_an_object(self) -> None:
        for value in ([], "x", 5, True):
            self.assert_refused(
                lambda value=value: check_execution_config({"execution_config": value}, CEILINGS),  # type: ignore[misc]
                "invalid_execution_config",
                "execution_config",
            )


class FieldsTest(QuestionCase):
    def test_without_options_members_get_the_contracts(self) -> None:
        self.assertEqual(check_fields({"prompt": "x"}, check), {"temperature": 0.7, "max_tokens": 2048})
        self.assertEqual(check_fields({"temperature": None}, check)["temperature"], 0.7)

    def test_options_are_passed_on_as_given(self) -> None:
        options = {"temperature": 0, "max_tokens": 5}
        self.assertEqual(check_fields({"prompt": "x", **options}, check), options)

    def test_options_are_checked_as_those_of_chat(self) -> None:
        for key, value in (("temperature", 3), ("temperature", "1"), ("max_tokens", 0), ("max_tokens", 1.5)):
            self.assert_refused(lambda key=key, value=value: check_fields({key: value}, check), f"invalid_{key}", key)  # type: ignore[misc]

    def test_every_field_is_known_and_no_other(self) -> None:
        check_fields(dict.fromkeys(FIELDS), check)
        message = self.assert_refused(lambda: check_fields({"model": "a"}, check), "invalid_body", "model")
        self.assertIn("models", message)
        self.assert_refused(lambda: check_fields({"k" * 500: 1}, check), "invalid_body", "k" * 40)

    def test_metadata_is_an_object_and_a_system_prompt_a_text(self) -> None:
        check_fields({"metadata": {"a": [1]}, "system": ""}, check)
        for value in ("x", [], 5, True):
            self.assert_refused(
                lambda value=value: check_fields({"metadata": value}, check), "invalid_body", "metadata"
            )  # type: ignore[misc]
        for value in ({}, [], 5, True):
            self.assert_refused(lambda value=value: check_fields({"system": value}, check), "invalid_body", "system")  # type: ignore[misc]


class ShapeTest(unittest.TestCase):
    def test_the_fields_of_the_contract_are_known(self) -> None:
        contract = "prompt models execute_code verify temperature max_tokens execution_config tests inputs entry_point"
        self.assertLessEqual({*contract.split(), "metadata"}, set(question.FIELDS))


if __name__ == "__main__":
    unittest.main()
