"""Settings: the table, the environment and `.env`, every fault at once, and no secret shown."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import ClassVar
from unittest import mock

from gateway.announcing import describe as describe_with
from gateway.configuration import ConfigurationError
from gateway.dotenv import read_strictly
from gateway.routing.router import Router
from gateway.settings import (
    SETTINGS,
    Settings,
    env_example,
    load,
    readme_table,
    reload,
)

ROOT = Path(__file__).resolve().parents[2]
HAS_DOTENV = importlib.util.find_spec("dotenv") is not None
# Takes python-dotenv away where it is installed, so that the strict reader is what runs.
WITHOUT_DOTENV = {"dotenv": None, "dotenv.parser": None}


def describe(settings: Settings, *, state_keys: bool = False) -> str:
    """What `check` prints, with a router that has asked no engine."""
    return describe_with(settings, Router(settings.fleet, fallback=settings.fallback), state_keys=state_keys)


class SettingsCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, content: object) -> Path:
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_bytes(text.encode())
        return path

    def faults(self, environ: Mapping[str, str], dotenv_path: Path | None = None) -> tuple[str, ...]:
        with self.assertRaises(ConfigurationError) as caught:
            load(environ, dotenv_path)
        return caught.exception.faults

    def assert_faults(self, environ: Mapping[str, str], *starts: str) -> None:
        faults = self.faults(environ)
        self.assertEqual(len(faults), len(starts), faults)
        for fault, start in zip(faults, starts):
            self.assertTrue(fault.startswith(start), f"{fault!r} does not start with {start!r}")


class TableTest(SettingsCase):
    def test_defaults_are_those_of_the_contract(self) -> None:
        settings = load({}, None)
        expected = {
            "host": "127.0.0.1", "port": 8080, "drain_timeout_s": 30.0, "engines_file": None,
            "default_model": None, "strategy": "round_robin", "fallback": "any",
            "retry_attempts": 3, "workers": 256, "queue_size": 1024, "queue_timeout_s": 30.0,
            "connect_timeout_s": 5.0, "request_timeout_s": 60.0, "first_token_timeout_s": 60.0,
            "stream_idle_timeout_s": 60.0, "health_interval_s": 5.0, "health_timeout_s": 2.0,
            "health_fails": 2, "health_passes": 1, "max_body_bytes": 33554432,
            "max_upload_bytes": 1073741824,
            "max_header_bytes": 32768, "client_timeout_s": 30.0, "keepalive_timeout_s": 75.0,
            "max_connections": 10000, "error_format": "auto", "cors_origins": (),
            "auth": "auto", "log_level": "info", "log_format": "auto", "log_bodies": False,
            "api_keys": (), "engine_keys": {}, "routing_seed": None, "decision_log": None,
            "breaker_window_s": 30.0, "breaker_min_requests": 5, "breaker_failure_ratio": 0.5,
            "breaker_open_s": 5.0, "breaker_max_open_s": 60.0,
            "state_db": Path("gateway.db"), "roles_file": None, "metrics_auth": "auto",
            "jwt_secret": None, "jwt_algorithm": "HS256", "jwt_issuer": None, "jwt_audience": None,
            "jwt_jwks": None, "rate_limit_rpm": None, "rate_limit_tpm": None,
            "rate_limit_concurrency": None, "rate_limit_ip_rpm": None, "rate_limit_global_rpm": None,
            "rate_limit_global_tpm": None, "rate_limit_burst": 0.1, "limit_target_wait_s": 2.0,
            "limit_target_errors": 0.5, "trusted_proxies": (), "ledger": "auto", "ledger_days": 90,
            "drain_delay_s": 0.0, "allowed_hosts": (), "dns_ttl_s": 30.0,
            "max_answer_bytes": 67108864, "max_event_bytes": 8388608, "max_json_values": 1000000,
            "stream_end_grace_s": 1.0, "rate_limit_token_burst": 1.0,
            "batch_max_size": 32, "batch_max_wait_ms": 20, "batch_embeddings": False, "coalesce": True,
            "cache": False, "cache_ttl_s": 3600.0, "cache_max_bytes": 67108864, "cache_db": None,
            "cache_scope": "key", "cache_near": False, "cache_guard": True, "cache_similarity": 0.95,
            "embeddings_model": None, "redis_url": None, "redis_timeout_ms": 50,
            "sandbox": "auto", "sandbox_min": "namespaces", "sandbox_runtime": None, "sandbox_image": None,
            "sandbox_concurrency": 2, "sandbox_timeout_s": 30.0, "sandbox_memory_mb": 256,
            "heal_attempts": 1, "verify_timeout_s": 60.0, "schema_retries": 2, "schemas_dir": None,
            "slow_ms": 0, "console": True, "otlp_endpoint": None, "otlp_headers": {},
            "otel_service_name": "inference-gateway", "traces_sampler": "parentbased_always_on", "traces_ratio": 1.0,
            "propagates_traces": True, "traces_exporter": "otlp", "metrics_exporter": "none",
            "metric_interval_ms": 60000, "alerts_file": None, "alerts_url": None, "slo_availability": None,
            "slo_latency_ms": None, "processes": 1, "region": None, "shared_fail": "local",
        }  # fmt: skip
        for name, value in expected.items():
            with self.subTest(name):
                self.assertEqual(getattr(settings, name), value)
                self.assertIs(type(getattr(settings, name)) is bool, type(value) is bool)
        beside = {"fleet", "flags", "dotenv_path", "dotenv_warnings"}
        self.assertEqual({f.name for f in fields(Settings)} - set(expected), beside)
        self.assertTrue(settings.fleet.wildcard)
        self.assertTrue(settings.fleet.models[0].engines[0].is_echo)

    def test_opentelemetrys_usual_propagators_are_understood(self) -> None:
        for text, expected in (("tracecontext,baggage", True), ("Baggage", False), ("none", False), ("", True)):
            with self.subTest(text):
                self.assertIs(load({"OTEL_PROPAGATORS": text}, None).propagates_traces, expected)
        self.assert_faults(
            {"OTEL_TRACES_SAMPLER_ARG": "7"}, "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1, not"
        )

    def test_every_name_of_the_contract_is_in_the_table_once(self) -> None:
        names = [setting.name for setting in SETTINGS]
        self.assertEqual(len(names), len(set(names)))
        contract = """HOST PORT BACKEND_URL ENGINES ENGINES_FILE DEFAULT_MODEL STRATEGY FALLBACK
            WORKERS QUEUE_SIZE QUEUE_TIMEOUT CONNECT_TIMEOUT REQUEST_TIMEOUT FIRST_TOKEN_TIMEOUT
            STREAM_IDLE_TIMEOUT RETRY_ATTEMPTS SCHEMA_RETRIES SCHEMAS_DIR HEALTH_INTERVAL HEALTH_TIMEOUT HEALTH_FAILS
            HEALTH_PASSES MAX_BODY_BYTES MAX_HEADER_BYTES CLIENT_TIMEOUT KEEPALIVE_TIMEOUT
            MAX_CONNECTIONS ERROR_FORMAT CORS_ORIGINS LOG_LEVEL LOG_FORMAT API_KEYS ADMIN_KEYS
            AUTH DRAIN_TIMEOUT LOG_BODIES ROUTING_SEED DECISION_LOG BREAKER_WINDOW
            BREAKER_MIN_REQUESTS BREAKER_FAILURE_RATIO BREAKER_OPEN_SECONDS BREAKER_MAX_OPEN_SECONDS
            STATE_DB ROLES_FILE METRICS_AUTH JWT_SECRET JWT_ALGORITHM JWT_ISSUER JWT_AUDIENCE JWT_JWKS
            RATE_LIMIT_RPM RATE_LIMIT_TPM RATE_LIMIT_CONCURRENCY RATE_LIMIT_IP_RPM RATE_LIMIT_GLOBAL_RPM
            RATE_LIMIT_GLOBAL_TPM RATE_LIMIT_BURST RATE_LIMIT_TOKEN_BURST STREAM_END_GRACE
            TRUSTED_PROXIES LEDGER_DAYS SANDBOX SANDBOX_MIN SANDBOX_RUNTIME SANDBOX_IMAGE SANDBOX_CONCURRENCY
            SANDBOX_TIMEOUT SANDBOX_MEMORY_MB HEAL_ATTEMPTS VERIFY_TIMEOUT"""
        self.assertLessEqual(set(contract.split()), set(names))

    def test_every_row_fills_a_field_and_explains_itself(self) -> None:
        consumed = {"backend_fleet", "inline_fleet", "user_keys", "admin_keys"}
        known = {f.name for f in fields(Settings)} | consumed
        for setting in SETTINGS:
            with self.subTest(setting.name):
                self.assertIn(setting.field, known)
                self.assertTrue(setting.help and setting.section)
                self.assertNotIn("\n", setting.help)

    def test_settings_are_frozen(self) -> None:
        with self.assertRaises(FrozenInstanceError):
            load({}, None).port = 1  # type: ignore[misc]


class ValuesTest(SettingsCase):
    def test_values_are_taken_in_their_units(self) -> None:
        settings = load(
            {
                "HOST": "[::1]", "PORT": " 0 ", "CONNECT_TIMEOUT": "0.25", "QUEUE_TIMEOUT": ".5",
                "HEALTH_INTERVAL": "0", "STRATEGY": "Latency", "FALLBACK": "off",
                "CORS_ORIGINS": "https://a.example, http://localhost:3000", "LOG_BODIES": "on",
                "ERROR_FORMAT": "openai", "LOG_LEVEL": "DEBUG", "LOG_FORMAT": "json",
                "WORKERS": "10000", "ROUTING_SEED": "0", "DECISION_LOG": "d.jsonl", "BREAKER_WINDOW": ".5",
                "BREAKER_MIN_REQUESTS": "1", "BREAKER_FAILURE_RATIO": "1", "BREAKER_OPEN_SECONDS": "0.5",
            },
            None,
        )  # fmt: skip
        self.assertEqual((settings.host, settings.port), ("::1", 0))
        self.assertEqual((settings.connect_timeout_s, settings.queue_timeout_s), (0.25, 0.5))
        self.assertEqual(settings.health_interval_s, 0.0)
        self.assertEqual((settings.strategy, settings.fallback), ("latency", "off"))
        self.assertEqual(settings.workers, 10000)
        self.assertEqual((settings.routing_seed, settings.decision_log), (0, Path("d.jsonl")))
        self.assertEqual((settings.breaker_window_s, settings.breaker_min_requests), (0.5, 1))
        self.assertEqual((settings.breaker_failure_ratio, settings.breaker_open_s), (1.0, 0.5))
        self.assertEqual(settings.cors_origins, ("https://a.example", "http://localhost:3000"))
        self.assertEqual((settings.log_bodies, settings.log_level), (True, "debug"))
        self.assertEqual(load({"CORS_ORIGINS": "*"}, None).cors_origins, ("*",))

    def test_headers_of_what_is_exported_are_read_as_opentelemetry_has_them_and_never_shown(self) -> None:
        headers = load({"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20c2VjcmV0,x-team = a=b ,"}, None)
        self.assertEqual(headers.otlp_headers, {"authorization": "Basic c2VjcmV0", "x-team": "a=b"})
        self.assertNotIn("c2VjcmV0", repr(headers))
        faults = self.faults(
            {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=c2Vj%0acmV0", "ALERTS_URL": "http://h/c2VjcmV0 x"}
        )
        self.assertNotIn("c2Vj", "".join(faults))

    def test_metrics_that_have_nowhere_to_go_are_refused(self) -> None:
        self.assert_faults({"OTEL_METRICS_EXPORTER": "otlp"}, "OTEL_METRICS_EXPORTER: otlp needs OTEL_EXPORTER_OTLP_EN")
        there = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
        self.assertEqual(load(there, None).metrics_exporter, "otlp")

    def test_empty_and_blank_values_count_as_unset(self) -> None:
        environ = {setting.name: blank for setting in SETTINGS for blank in ("", "  ")}
        self.assertEqual(load(environ, None), load({}, None))

    def test_unknown_names_are_ignored(self) -> None:
        self.assertEqual(load({"PATH": "/bin", "WORKER": "x"}, None), load({}, None))

    def test_values_that_cannot_work_are_refused(self) -> None:
        number = ("x", "-1", "1e3", "1_0", "nan", "inf", "0x10", "\u0663", "1" * 30)
        cases: dict[str, tuple[str, ...]] = {
            "HOST": ("a b", "1.2.3.4.5", "http://a", "*", "-x"),
            "PORT": (*number, "65536", "80.0"),
            "WORKERS": (*number, "0", "10001"),
            "QUEUE_SIZE": (*number, "0"),
            "RETRY_ATTEMPTS": ("0",),
            "HEALTH_FAILS": ("0",),
            "HEALTH_PASSES": ("0",),
            "MAX_BODY_BYTES": ("0", "32M"),
            "MAX_HEADER_BYTES": ("10",),
            "MAX_CONNECTIONS": ("0",),
            "HEALTH_INTERVAL": (*number, "0.001", "86401"),
            "STRATEGY": ("fastest",),
            "FALLBACK": ("on",),
            "DEFAULT_MODEL": ("a b",),
            "AUTH": ("on",),
            "CORS_ORIGINS": ("a.example", "https://a/", "*,https://a", "https://a,", "https://a b"),
            "ERROR_FORMAT": ("xml",),
            "LOG_LEVEL": ("loud",),
            "LOG_FORMAT": ("xml",),
            "LOG_BODIES": ("maybe",),
            "ROUTING_SEED": (*number, "1.0", "1000000000000000000"),
            "BREAKER_WINDOW": (*number, "0"),
            "BREAKER_MIN_REQUESTS": (*number, "0"),
            "BREAKER_FAILURE_RATIO": (*number, "0", "0.0", "1.01", "50%", "."),
            "BREAKER_OPEN_SECONDS": (*number, "0"),
            "BREAKER_MAX_OPEN_SECONDS": (*number, "0"),
            "SLOW_MS": (*number, "1.5"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": (
                "a",
                "ftp://a",
                "http://",
                "http://a:x",
                "http://a:0",
                "http://u:p@a",
                "http://a b",
            ),
            "OTEL_EXPORTER_OTLP_HEADERS": ("a", "a=", "a=%0a", "a b=c", "=c"),
            "OTEL_TRACES_SAMPLER": ("jaeger_remote",),
            "OTEL_TRACES_SAMPLER_ARG": ("1.1", "-1", "x"),
            "OTEL_PROPAGATORS": ("b3", "tracecontext,b3", "none,tracecontext", "tracecontext,"),
            "OTEL_TRACES_EXPORTER": ("jaeger",),
            "OTEL_METRICS_EXPORTER": ("prometheus",),
            "OTEL_METRIC_EXPORT_INTERVAL": (*number, "99", "1.5"),
            "ALERTS_URL": ("a", "http://a#b"),
            "SLO_AVAILABILITY": ("0", "1", "99.9"),
            "SLO_LATENCY_MS": ("0", "x"),
        }
        for setting in SETTINGS:
            if setting.name.endswith("_TIMEOUT"):
                cases[setting.name] = (*number, "0", "86401", ".", "30s")
        for name, texts in cases.items():
            for text in texts:
                with self.subTest(name=name, text=text):
                    self.assert_faults({name: text}, f"{name}: must ")

    def test_what_may_be_given_is_said_in_plain_numbers(self) -> None:
        self.assert_faults({"CACHE_TTL": "0"}, "CACHE_TTL: must be a number of seconds from 1 to 315360000, not ")
        self.assert_faults(
            {"HEALTH_INTERVAL": "-1"}, "HEALTH_INTERVAL: must be a number of seconds from 0.01 to 86400, or"
        )

    def test_a_breaker_must_not_open_for_longer_than_it_may(self) -> None:
        both = "BREAKER_OPEN_SECONDS, BREAKER_MAX_OPEN_SECONDS: "
        self.assert_faults({"BREAKER_OPEN_SECONDS": "9", "BREAKER_MAX_OPEN_SECONDS": "8"}, f"{both}9 is more than 8")
        self.assert_faults({"BREAKER_OPEN_SECONDS": "61"}, f"{both}61 is more than 60")
        self.assert_faults({"BREAKER_MAX_OPEN_SECONDS": "4", "PORT": "x"}, "PORT: must be", f"{both}5 is more than 4")
        self.assert_faults({"BREAKER_OPEN_SECONDS": "x", "BREAKER_MAX_OPEN_SECONDS": "4"}, "BREAKER_OPEN_SECONDS: must")
        self.assertEqual(load({"BREAKER_OPEN_SECONDS": "60"}, None).breaker_open_s, 60.0)

    def test_every_faulty_variable_is_named_at_once(self) -> None:
        environ = {
            "PORT": "x",
            "WORKERS": "0",
            "BACKEND_URL": "nowhere",
            "API_KEYS": "a:",
            "AUTH": "?",
        }
        self.assert_faults(
            environ,
            "PORT: must be an integer from 0 to 65535, not ",
            "BACKEND_URL: must be http://",
            "WORKERS: must be an integer from 1 to 10000, not ",
            "API_KEYS: entry 1: the key must be 1 to 8192 printable",
            "AUTH: must be one of auto, off",
        )


class FleetSettingsTest(SettingsCase):
    FILE: ClassVar[dict[str, object]] = {
        "default_model": "b",
        "models": {"a": {"engines": ["http://x"]}, "b": {"engines": ["http://y"]}},
    }

    def test_backend_url_serves_every_model_and_default_model_may_be_any(self) -> None:
        settings = load({"BACKEND_URL": "http://h:1", "DEFAULT_MODEL": "llama"}, None)
        self.assertTrue(settings.fleet.wildcard)
        self.assertEqual(settings.fleet.default_model, "llama")

    def test_inline_engines(self) -> None:
        settings = load({"ENGINES": "a=http://x;b=http://y", "DEFAULT_MODEL": "b"}, None)
        self.assertEqual([model.name for model in settings.fleet.models], ["a", "b"])
        self.assertEqual(settings.fleet.default_model, "b")

    def test_engines_file_and_default_model_before_the_file_s_own(self) -> None:
        path = self.write("e.json", self.FILE)
        settings = load({"ENGINES_FILE": str(path)}, None)
        self.assertEqual((settings.fleet.default_model, settings.engines_file), ("b", path))
        settings = load({"ENGINES_FILE": str(path), "DEFAULT_MODEL": "a"}, None)
        self.assertEqual(settings.fleet.default_model, "a")

    def test_settings_of_tokens_without_a_key_to_check_them_are_refused(self) -> None:
        self.assert_faults({"JWT_ALGORITHM": "RS256"}, "JWT_ALGORITHM: RS256 needs JWT_JWKS")
        self.assert_faults({"JWT_ALGORITHM": "HS512"}, "JWT_ALGORITHM: HS512 needs JWT_SECRET")
        either = "says nothing without JWT_SECRET or JWT_JWKS"
        both = {"JWT_ISSUER": "https://x", "JWT_AUDIENCE": "y"}
        self.assert_faults(both, f"JWT_ISSUER: {either}", f"JWT_AUDIENCE: {either}")
        self.assert_faults({**both, "API_KEYS": "k"}, f"JWT_ISSUER: {either}", f"JWT_AUDIENCE: {either}")
        self.assert_faults(
            {"JWT_ALGORITHM": "ES256", "JWT_ISSUER": "x"}, "JWT_ALGORITHM: ES256 needs", "JWT_ISSUER: says nothing"
        )
        self.assert_faults({**both, "JWT_SECRET": "short"}, "JWT_SECRET: ")  # which is told, and enough
        for variables in ({"AUTH": "off"}, {"JWT_SECRET": "s" * 32}, {"JWT_JWKS": "f", "JWT_ALGORITHM": "RS256"}):
            load({**both, **variables}, None)

    def test_engines_from_two_places_are_refused_naming_those_given(self) -> None:
        self.assert_faults(
            {"BACKEND_URL": "http://a", "ENGINES_FILE": "/nowhere"},
            "BACKEND_URL, ENGINES_FILE: exclude each other",
        )
        self.assert_faults(
            {"BACKEND_URL": "x", "ENGINES": "a=http://x", "ENGINES_FILE": "f"},
            "BACKEND_URL: must be",
            "BACKEND_URL, ENGINES, ENGINES_FILE: exclude each other",
        )

    def test_default_model_must_exist(self) -> None:
        environ = {"ENGINES": "a=http://x", "DEFAULT_MODEL": "c"}
        self.assert_faults(environ, 'DEFAULT_MODEL: there is no model "c"; known: a')

    def test_faults_of_inline_engines_and_of_the_file_all_appear(self) -> None:
        self.assert_faults(
            {"ENGINES": "a=x;b="},
            "ENGINES: a.engines[0].url: must be",
            "ENGINES: b.engines: must be",
        )
        path = self.write("e.json", {"models": {"a": {"engines": ["x"], "weight": 1}}})
        self.assert_faults(
            {"ENGINES_FILE": str(path), "PORT": "x"},
            "PORT: must be",
            f"ENGINES_FILE: {path}: models.a.engines[0].url: must be",
            f"ENGINES_FILE: {path}: models.a.weight: is not a known key",
        )
        missing = self.folder / "missing.json"
        self.assert_faults({"ENGINES_FILE": str(missing)}, f"ENGINES_FILE: {missing}: the file cannot be read: ")

    def test_engine_keys_come_from_the_environment_or_dotenv(self) -> None:
        names = ("FROM_ENV", "FROM_FILE", "UNSET")
        engines = [{"url": f"http://h{index}", "api_key_env": name} for index, name in enumerate(names)]
        path = self.write("e.json", {"models": {"a": {"engines": engines}}})
        dotenv_path = self.write(".env", "FROM_FILE=sk-file\nFROM_ENV=sk-unused\nOTHER=x\n")
        settings = load({"ENGINES_FILE": str(path), "FROM_ENV": "sk-env"}, dotenv_path)
        self.assertEqual(settings.engine_keys, {"FROM_ENV": "sk-env", "FROM_FILE": "sk-file"})
        shown = repr(settings) + describe(settings)
        self.assertNotIn("sk-", shown)
        self.assertIn("key from UNSET, which is not set", shown)

    def test_reload_reads_the_file_again_and_keeps_everything_else(self) -> None:
        path = self.write("e.json", self.FILE)
        environ = {"ENGINES_FILE": str(path), "PORT": "9"}
        before = load(environ, None)
        self.write("e.json", {"models": {"c": {"engines": [{"url": "http://z", "api_key_env": "K"}]}}})
        after = reload(before, {**environ, "PORT": "10", "K": "sk-k"}, None)
        self.assertEqual(([m.name for m in after.fleet.models], after.port), (["c"], 9))
        self.assertEqual(after.engine_keys, {"K": "sk-k"})
        self.assertEqual([m.name for m in before.fleet.models], ["a", "b"])

    def test_reload_of_a_faulty_file_raises_and_without_a_file_changes_nothing(self) -> None:
        path = self.write("e.json", self.FILE)
        environ = {"ENGINES_FILE": str(path), "DEFAULT_MODEL": "a"}
        before = load(environ, None)
        for content, expected in (
            ("{", f"ENGINES_FILE: {path}: the file is not JSON"),
            ({"models": {"c": {"engines": ["http://z"]}}}, 'DEFAULT_MODEL: there is no model "a"'),
        ):
            self.write("e.json", content)
            with self.assertRaises(ConfigurationError) as caught:
                reload(before, environ, None)
            self.assertTrue(caught.exception.faults[0].startswith(expected))
        echo = load({}, None)
        self.assertIs(reload(echo, {}, None), echo)


class KeysTest(SettingsCase):
    def test_keys_are_kept_as_digests_with_names_and_roles(self) -> None:
        environ = {"API_KEYS": "alice:s3cret:with:colons, bare-key", "ADMIN_KEYS": "root:admin-key"}
        keys = load(environ, None).api_keys
        digests = [hashlib.sha256(key).digest() for key in (b"s3cret:with:colons", b"bare-key", b"admin-key")]
        self.assertEqual([key.digest for key in keys], digests)
        names = ["alice", "key-" + digests[1].hex()[:8], "root"]
        self.assertEqual([key.name for key in keys], names)
        self.assertEqual([key.role for key in keys], ["user", "user", "admin"])

    def test_authentication_is_on_with_any_key_unless_turned_off(self) -> None:
        self.assertFalse(load({}, None).auth_on)
        self.assertTrue(load({"API_KEYS": "k"}, None).auth_on)
        self.assertTrue(load({"ADMIN_KEYS": "k"}, None).auth_on)
        self.assertFalse(load({"API_KEYS": "k", "AUTH": "off"}, None).auth_on)

    def test_duplicate_keys_and_names_are_faults(self) -> None:
        self.assert_faults({"API_KEYS": "a:k,b:k"}, "API_KEYS: entry 2 has the same key as entry 1 of")
        self.assert_faults({"API_KEYS": "a:k,a:l"}, "API_KEYS: entry 2 has the same name as entry 1")
        self.assert_faults({"API_KEYS": "k,k"}, "API_KEYS: entry 2 has the same key as entry 1")
        self.assert_faults(
            {"API_KEYS": "a:k", "ADMIN_KEYS": "r:x,b:k,a:y"},
            "ADMIN_KEYS: entry 2 has the same key as entry 1 of API_KEYS",
            "ADMIN_KEYS: entry 3 has the same name as entry 1 of API_KEYS",
        )

    def test_entries_that_cannot_work_are_faults(self) -> None:
        for text in (",", "a:", ":k", "k,", "a b:k", "a:k l", "a:k\u00e9", "x" * 65 + ":k"):
            with self.subTest(text):
                for variable in ("API_KEYS", "ADMIN_KEYS"):
                    for fault in self.faults({variable: text}):
                        self.assertRegex(fault, rf"^{variable}: entry [12]: the ")

    def test_no_secret_is_ever_shown(self) -> None:
        path = self.write("e.json", {"models": {"a": {"engines": ["http://u:hunter2@h"]}}})
        faulty = [
            {"API_KEYS": "hunter2 x,na me:hunter2,hunter2:,a:hunter2,b:hunter2,hunter2\u00e9"},
            {"API_KEYS": "hunter2:a,hunter2:b", "ADMIN_KEYS": "hunter2:c"},
            {"BACKEND_URL": "http://u:hunter2@h"},
            {"BACKEND_URL": "http://h/v1?key=hunter2"},
            {"ENGINES": "a=http://u:hunter2@h;http://u:hunter2@h"},
            {"ENGINES": "a=http://u:hunter2,x@h"},
            {"ENGINES": "a=http://u:hunter2;x@h"},
            {"ENGINES_FILE": str(path)},
            {"API_KEYS": "a:hunter2", "PORT": "x"},
        ]
        for environ in faulty:
            with self.subTest(environ):
                self.assertNotIn("hunter2", "\n".join(self.faults(environ)))
        settings = load({"API_KEYS": "a:hunter2", "ADMIN_KEYS": "hunter2-admin"}, None)
        shown = repr(settings) + str(settings) + describe(settings)
        self.assertNotIn("hunter2", shown)
        self.assertNotIn(repr(settings.api_keys[0].digest), shown)

    def test_address_that_others_can_reach_needs_a_key_or_auth_off(self) -> None:
        for host in ("0.0.0.0", "::", "192.168.1.2", "gateway.example"):
            with self.subTest(host):
                self.assert_faults({"HOST": host}, f"HOST: others can reach {host} and no key")
                self.assertIn("AUTH=off", self.faults({"HOST": host})[0])
                self.assertFalse(load({"HOST": host, "AUTH": "off"}, None).on_loopback)
                self.assertTrue(load({"HOST": host, "ADMIN_KEYS": "k"}, None).auth_on)
        for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
            with self.subTest(host):
                self.assertTrue(load({"HOST": host}, None).on_loopback)

    def test_faulty_keys_are_not_reported_as_missing(self) -> None:
        self.assert_faults({"HOST": "0.0.0.0", "API_KEYS": "a:"}, "API_KEYS: entry 1")


class DotenvTest(SettingsCase):
    """What holds whichever reader runs; `StrictDotenvTest` repeats it without python-dotenv."""

    def test_environment_goes_before_dotenv(self) -> None:
        path = self.write(".env", "PORT=1\nWORKERS=2\nQUEUE_SIZE=3\n")
        settings = load({"PORT": "4", "WORKERS": ""}, path)
        self.assertEqual((settings.port, settings.workers, settings.queue_size), (4, 2, 3))

    def test_plain_lines_comments_export_and_quotes_are_read(self) -> None:
        path = self.write(
            ".env",
            b"\xef\xbb\xbf# a comment\r\n\r\n  export PORT = 1  # one\r\n"
            b"HOST='localhost' # quoted\nAPI_KEYS=\"a:k#1\"\nADMIN_KEYS=r:k#2\nWORKERS=\n"
            b"UNKNOWN=x y\n",
        )
        settings = load({}, path)
        self.assertEqual((settings.port, settings.host, settings.workers), (1, "localhost", 256))
        digests = [hashlib.sha256(key).digest() for key in (b"k#1", b"k#2")]
        self.assertEqual([key.digest for key in settings.api_keys], digests)

    def test_missing_file_is_no_fault(self) -> None:
        self.assertEqual(load({}, self.folder / ".env"), load({}, None))

    def test_unreadable_file_and_other_faults_are_named_together(self) -> None:
        self.assertRegex(self.faults({}, self.folder)[0], r"^\.env: cannot be read: ")
        path = self.write(".env", b"PORT=1\xff\n")
        faults = self.faults({"WORKERS": "x"}, path)
        self.assertEqual(faults[0], ".env: is not UTF-8: byte 6")
        self.assertTrue(faults[1].startswith("WORKERS: must be"))
        self.assertEqual(len(faults), 2)

    def test_broken_line_stops_the_start_without_showing_it(self) -> None:
        path = self.write(".env", "PORT=1\nAPI_KEYS='hunter2' hunter2\nWORKERS=2\n")
        faults = self.faults({}, path)
        self.assertEqual(len(faults), 1)
        self.assertTrue(faults[0].startswith(".env line 2: "))
        self.assertNotIn("hunter2", faults[0])

    def test_example_with_every_line_taken_in_gives_the_defaults(self) -> None:
        lines = env_example().splitlines()
        taken_in = [line[1:] if line[:1] == "#" and line[1:2].isupper() else line for line in lines]
        path = self.write(".env", "\n".join(taken_in))
        self.assertEqual(sum("=" in line and line[0] != "#" for line in taken_in if line), len(SETTINGS))
        self.assertEqual(load({}, path), load({}, None))


class StrictDotenvTest(DotenvTest):
    def setUp(self) -> None:
        super().setUp()
        hidden = mock.patch.dict(sys.modules, WITHOUT_DOTENV)
        hidden.start()
        self.addCleanup(hidden.stop)

    def test_lines_that_need_python_dotenv_are_all_named(self) -> None:
        path = self.write(
            ".env",
            "PORT=1\nA=${B}\nB='${C}'\nC=\"a\\nb\"\nD='it\\'s'\nNOVALUE\nE=#x\nG='a' b\n'H'=1\nF=\"opens\nPORT=x\n",
        )
        faults = self.faults({}, path)
        numbers = [fault.split(":")[0] for fault in faults]
        self.assertEqual(numbers, [f".env line {number}" for number in range(2, 11)], faults)
        for fault in faults:
            self.assertIn("needs python-dotenv (pip install python-dotenv)", fault)


class StrictReaderTest(unittest.TestCase):
    ACCEPTED: ClassVar[dict[str, dict[str, str]]] = {
        "": {},
        "A=1": {"A": "1"},
        "A=": {"A": ""},
        "A=1\nA=2": {"A": "2"},
        "A=1\rB=2\r\nC=3\n": {"A": "1", "B": "2", "C": "3"},
        " \t export  A\t=\t1 \t": {"A": "1"},
        "A=a b  c": {"A": "a b  c"},
        "A=a#b": {"A": "a#b"},
        "A=a #b": {"A": "a"},
        "A=a'b\"c": {"A": "a'b\"c"},
        "A=a\\nb": {"A": "a\\nb"},
        "A=a=b": {"A": "a=b"},
        "A=$B": {"A": "$B"},
        "A=' a # b '": {"A": " a # b "},
        'A="it\'s"#c': {"A": "it's"},
        "A='say \"hi\"'  # c": {"A": 'say "hi"'},
        "A=''": {"A": ""},
        "A.b-C_1=x": {"A.b-C_1": "x"},
        "A=a\u2028b\x0cc": {"A": "a\u2028b\x0cc"},
        "A=\u00e9": {"A": "\u00e9"},
        "#A=1\n  # B=2": {},
    }

    def test_plain_lines_are_read(self) -> None:
        for text, values in self.ACCEPTED.items():
            with self.subTest(text):
                self.assertEqual(read_strictly(text), values)

    @unittest.skipUnless(HAS_DOTENV, "python-dotenv is not installed")
    def test_python_dotenv_reads_the_same_from_what_is_accepted(self) -> None:
        import io

        from dotenv import dotenv_values

        for text, values in self.ACCEPTED.items():
            with self.subTest(text):
                self.assertEqual(dict(dotenv_values(stream=io.StringIO(text))), values)

    def test_nothing_after_an_open_quote_is_judged(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            read_strictly("A='1\nB=${x}\nC\n'\n")
        self.assertEqual(len(caught.exception.faults), 1)


@unittest.skipUnless(HAS_DOTENV, "python-dotenv is not installed")
class PythonDotenvTest(SettingsCase):
    def test_what_the_strict_reader_refuses_works_with_it(self) -> None:
        text = 'NAME=localhost\nHOST=${NAME}\nAPI_KEYS="a:x,\nb:y"\nNOVALUE\n'
        with self.assertRaises(ConfigurationError):
            read_strictly(text)
        settings = load({}, self.write(".env", text))
        self.assertEqual(settings.host, "localhost")
        self.assertEqual([key.name for key in settings.api_keys], ["a", "b"])


class RenderingTest(SettingsCase):
    def test_env_example_file_is_what_the_table_says(self) -> None:
        self.assertEqual((ROOT / ".env.example").read_text(encoding="utf-8"), env_example())

    def test_the_table_of_the_docs_is_what_the_table_says(self) -> None:
        text = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
        table = text.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]
        self.assertEqual(table.strip(), readme_table().strip())

    def test_every_setting_is_in_both(self) -> None:
        rows = readme_table().splitlines()[2:]
        self.assertEqual(len(rows), len(SETTINGS))
        for setting, row in zip(SETTINGS, rows):
            self.assertTrue(row.startswith(f"| `{setting.name}` | "), row)
            self.assertEqual(row.replace("\\|", "").count("|"), 4, row)
            self.assertIn(f"\n#{setting.name}={setting.default}\n", env_example())

    def test_module_prints_both(self) -> None:
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        for argument, expected in (("env", env_example()), ("table", readme_table()), ("x", "")):
            run = subprocess.run(
                [sys.executable, "-m", "gateway.settings", argument],
                cwd=ROOT, env=environ, capture_output=True, timeout=30, check=False,
            )  # fmt: skip
            self.assertEqual(run.stdout.decode(), expected, run.stderr)
            self.assertEqual(run.returncode, 0 if expected else 2)

    def test_describe_shows_what_would_run(self) -> None:
        models = {
            "a": {
                "strategy": "random",
                "fallbacks": ["b"],
                "engines": [{"url": "http://x:1", "id": "one", "weight": 3, "max_concurrency": 4}],
            },
            "b": {
                "aliases": ["bee"],
                "engines": ["http://y:2", {"url": "https://z", "model": "q"}],
            },
        }
        path = self.write("e.json", {"models": models, "default_model": "bee"})
        environ = {"ENGINES_FILE": str(path), "HOST": "::1", "API_KEYS": "u:k", "ADMIN_KEYS": "r:l"}
        self.assertEqual(
            describe(load(environ, None)).splitlines(),
            [
                "address: http://[::1]:8080",
                "authentication: on, 2 keys (1 admin)",
                "model a",
                "  strategy: random",
                "  fallbacks: b",
                "  engine one: http://x:1/v1, weight 3, at most 4 at once, no answer yet",
                "model b (default)",
                "  aliases: bee",
                "  strategy: round_robin",
                "  fallbacks: a",
                "  engine y:2: http://y:2/v1, weight 1, no answer yet",
                "  engine z:443: https://z/v1, weight 1, model q, no answer yet",
            ],
        )

    def test_describe_names_every_way_in(self) -> None:
        (self.folder / "gateway.db").write_bytes(b"")
        for environ, state_keys, expected in (
            ({}, False, "off (no key configured)"),
            ({}, True, "on, keys of the state database"),
            ({"ADMIN_KEYS": "k"}, True, "on, 1 key (1 admin), keys of the state database"),
            ({"JWT_SECRET": "s" * 32, "API_KEYS": "k"}, False, "on, 1 key (0 admin), tokens"),
        ):
            with self.subTest(expected):
                settings = load({**environ, "STATE_DB": str(self.folder / "gateway.db")}, None)
                text = describe(settings, state_keys=state_keys)
                self.assertIn(f"\nauthentication: {expected}\n", text)

    def test_describe_names_the_ways_authentication_and_fallbacks_are_off(self) -> None:
        self.assertIn("authentication: off (no key configured)", describe(load({}, None)))
        text = describe(load({"AUTH": "off"}, None), state_keys=True)
        self.assertIn("authentication: off (AUTH=off)", text)
        text = describe(load({"AUTH": "off", "API_KEYS": "k", "FALLBACK": "off"}, None))
        self.assertIn("authentication: off (AUTH=off)", text)
        self.assertIn("fallbacks: none (FALLBACK=off)", text)
        self.assertIn("every model name is served by echo", text)


if __name__ == "__main__":
    unittest.main()
