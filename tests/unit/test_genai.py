"""OpenTelemetry's metrics of generative AI: what is counted, by which labels."""

from __future__ import annotations

import unittest
from typing import Any

from gateway.calling import PATHS
from gateway.routing.providers import PROVIDERS
from gateway.telemetry import genai
from gateway.telemetry.events import AttemptRecord, RequestEvent
from gateway.telemetry.genai import INSTRUMENTS, OPERATIONS
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.registry import Registry
from tests.unit.test_metrics import CHAT, event, scrape

LABELS = "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model"
WELL_KNOWN_PROVIDERS = {
    *("anthropic", "aws.bedrock", "azure.ai.inference", "azure.ai.openai", "cohere", "deepseek", "gcp.gemini"),
    *("gcp.gen_ai", "gcp.vertex_ai", "groq", "ibm.watsonx.ai", "mistral_ai", "openai", "perplexity", "x_ai"),
}


def streamed(**changes: Any) -> RequestEvent:
    """A stream of five tokens, a second long, whose first event came after a fifth of it."""
    record = AttemptRecord("13b", "a:1", "ok", 0.9, 10.0, 0.1)
    base = event(stream=True, latency_s=1.0, ttft_s=0.2, completion_tokens=5, attempt_records=(record,))
    return base._replace(**changes)


class GenAiTest(unittest.TestCase):
    def setUp(self) -> None:
        self.models = {"13b": "13b", "70b": "70b", "chat": "13b"}
        self.providers = {("13b", "a:1"): "vllm", ("70b", "b:1"): "gemini"}
        self.registry = Registry()
        self.metrics = GatewayMetrics(
            self.registry, lambda: self.models, {CHAT}, lambda *names: self.providers.get(names, "")
        )

    def counted(self, *events: RequestEvent) -> dict[str, float]:
        """Sums and counts of what OpenTelemetry names."""
        self.metrics.observe(events)
        found = scrape(self.registry)
        return {name: value for name, value in found.items() if name.startswith("gen_ai_") and "_bucket{" not in name}

    def labelled(self, name: str, *values: str, **further: str) -> str:
        pairs = {**dict(zip(LABELS, values)), **further}
        return f"{name}{{{','.join(f'{key}={chr(34)}{value}{chr(34)}' for key, value in pairs.items())}}}"

    def test_a_plain_answer(self) -> None:
        shared = ("chat", "vllm", "13b", "13b")
        usage = "gen_ai_client_token_usage"
        self.assertEqual(
            self.counted(event(), event()),
            {
                self.labelled(f"{usage}_sum", *shared, gen_ai_token_type="input"): 6,
                self.labelled(f"{usage}_count", *shared, gen_ai_token_type="input"): 2,
                self.labelled(f"{usage}_sum", *shared, gen_ai_token_type="output"): 8,
                self.labelled(f"{usage}_count", *shared, gen_ai_token_type="output"): 2,
                self.labelled("gen_ai_server_request_duration_seconds_sum", *shared, error_type=""): 0.5,
                self.labelled("gen_ai_server_request_duration_seconds_count", *shared, error_type=""): 2,
            },
        )

    def test_a_stream(self) -> None:
        found = self.counted(streamed())
        shared = ("chat", "vllm", "13b", "13b")
        self.assertEqual(found[self.labelled("gen_ai_server_time_to_first_token_seconds_sum", *shared)], 0.2)
        # 0.8 s for the four tokens behind the first one.
        self.assertEqual(found[self.labelled("gen_ai_server_time_per_output_token_seconds_sum", *shared)], 0.2)

    def test_only_streams_that_ended_well_tell_how_long_a_token_takes(self) -> None:
        each = "gen_ai_server_time_per_output_token_seconds"
        whole = AttemptRecord("13b", "a:1", "ok", 0.9)  # an answer that was only told as a stream
        for changes in (
            {"error": "stream_interrupted"},
            {"completion_tokens": 1},
            {"completion_tokens": None},
            {"attempt_records": (whole,)},
            {"attempt_records": (), "attempts": 0},
            {"ttft_s": None},
        ):
            self.setUp()
            self.assertEqual([name for name in self.counted(streamed(**changes)) if name.startswith(each)], [], changes)

    def test_an_error_has_its_code_and_no_model_that_answered(self) -> None:
        found = self.counted(event(status=502, error="backend_error", prompt_tokens=None, completion_tokens=None))
        duration = "gen_ai_server_request_duration_seconds"
        labels = ("chat", "vllm", "13b", "")
        self.assertEqual(
            found,
            {
                self.labelled(f"{duration}_sum", *labels, error_type="backend_error"): 0.25,
                self.labelled(f"{duration}_count", *labels, error_type="backend_error"): 1,
            },
        )
        refused = event(status=401, error="unauthorized", model=None, engine=None, attempts=0, attempt_records=())
        name = self.labelled(f"{duration}_count", "chat", "gateway", "", "", error_type="unauthorized")
        self.assertEqual(self.counted(refused)[name], 1)
        name = self.labelled(f"{duration}_count", *labels, error_type="_OTHER")
        self.assertEqual(self.counted(event(error="no code of ours"))[name], 1)

    def test_a_fallback_tells_both_models(self) -> None:
        found = self.counted(event(model="70b", engine="b:1", fallback="13b->70b"))
        duration = self.labelled(
            "gen_ai_server_request_duration_seconds_count", "chat", "gcp.gemini", "13b", "70b", error_type=""
        )
        self.assertEqual(found[duration], 1)

    def test_callers_cannot_invent_series(self) -> None:
        before = len(self.counted(event(model="x0")))
        for number in range(50):
            found = self.counted(event(model=f"x{number}"), event(path=f"/{number}"), event(model="chat"))
        self.assertEqual(len(found), 2 * before)
        name = self.labelled(
            "gen_ai_server_request_duration_seconds_count", "chat", "_OTHER", "other", "other", error_type=""
        )
        self.assertEqual(found[name], 51)

    def test_what_is_remembered_of_labels_is_bounded(self) -> None:
        remembered = self.metrics._genai._by_key
        for number in range(genai.SERIES_KEPT + 10):
            self.metrics.observe([event(engine=f"{number}:1", attempt_records=())])
        self.assertLessEqual(len(remembered), genai.SERIES_KEPT)

    def test_an_engine_that_has_become_anothers_counts_as_such(self) -> None:
        self.counted(event())
        self.providers["13b", "a:1"] = "sglang"
        self.models = dict(self.models)  # as a reload has it
        name = self.labelled(
            "gen_ai_server_request_duration_seconds_count", "chat", "sglang", "13b", "13b", error_type=""
        )
        self.assertEqual(self.counted(event())[name], 1)

    def test_parts_of_a_request_count_their_tokens_alone(self) -> None:
        found = self.counted(event(extra={"part_of": "r0"}))
        self.assertEqual(
            {name.partition("{")[0] for name in found},
            {
                "gen_ai_client_token_usage_sum",
                "gen_ai_client_token_usage_count",
            },
        )

    def test_paths_that_have_no_operation_there_are_not_counted(self) -> None:
        self.assertEqual(self.counted(event(path="/v1/rerank"), event(path="/healthz", method="GET")), {})

    def test_every_path_of_text_or_vectors_is_an_operation(self) -> None:
        others = {
            "rerank",
            "show",
            "moderations",
            "audio",
            "images",
            "tokenize",
            "detokenize",
            "props",
            "slots",
            "count_tokens",
        }
        for path in PATHS:
            self.assertEqual(path in OPERATIONS, not others & set(path.split("/")), path)
        self.assertLessEqual(set(OPERATIONS), set(PATHS))

    def test_providers_have_the_names_that_there_are_for_them(self) -> None:
        shown = {genai.PROVIDERS.get(name, name) for name in PROVIDERS}
        self.assertLessEqual(set(genai.PROVIDERS.values()), WELL_KNOWN_PROVIDERS)
        self.assertLessEqual({"openai", "anthropic", "groq", "deepseek"}, shown)
        self.assertLessEqual(set(genai.PROVIDERS), set(PROVIDERS))

    def test_names_follow_from_opentelemetrys(self) -> None:
        for instrument in INSTRUMENTS:
            suffix = {"s": "_seconds", "{token}": ""}[instrument.unit]
            self.assertEqual(instrument.name, genai.label_name(instrument.otel) + suffix)


if __name__ == "__main__":
    unittest.main()
