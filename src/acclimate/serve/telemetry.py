"""What the server says about itself: Prometheus metrics, OpenTelemetry, and a row for every answer. No text is in them.

Prometheus names are vLLM's where they mean the same, so that its dashboards work; the others begin with ``acclimate_``.
OpenTelemetry follows the semantic conventions for generative AI (``gen_ai.*``) in their experimental version, which
``OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental`` asks for.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from acclimate import __version__
from acclimate.errors import AcclimateError, first_line
from acclimate.language import AskReport
from acclimate.serve.experiments import Assignment
from acclimate.serve.service import Service
from acclimate.serve.worker import Ticket

if TYPE_CHECKING:
    from acclimate.media import MediaReport
    from acclimate.monitoring import Store

_LOG = logging.getLogger(__name__)
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
OPT_IN: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"


class _Collector:
    """Reads the load of the workers when metrics are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        loads = [(name, served.worker.load(), served) for name, served in self._service.models.items()]
        gauges: dict[str, tuple[str, Any]] = {
            "vllm:num_requests_running": ("Requests that are worked on.", lambda load: load.running),
            "vllm:num_requests_waiting": ("Requests that wait.", lambda load: load.waiting),
            "acclimate_rows_reading": ("Rows whose prompt is read.", lambda load: load.reading),
            "acclimate_rows_generating": ("Rows that generate.", lambda load: load.generating),
            "acclimate_requests_training": ("Requests that are trained or wait for it.", lambda load: load.training),
            "acclimate_key_value_bytes": ("Keys and values of rows.", lambda load: load.key_value_bytes),
            "acclimate_prefix_bytes": ("Beginnings of prompts that are kept.", lambda load: load.prefix_bytes),
            "acclimate_slot_bytes": ("Adapters in slots.", lambda load: load.slot_bytes),
            "acclimate_slots_in_use": ("Adapters that rows use.", lambda load: load.slots_in_use),
        }
        counters: dict[str, tuple[str, Any]] = {
            "vllm:prefix_cache_queries": (
                "Look-ups of beginnings of prompts.",
                lambda load: load.prefix_hits + load.prefix_misses,
            ),
            "vllm:prefix_cache_hits": ("Look-ups that found one.", lambda load: load.prefix_hits),
            "acclimate_adapter_loads": ("Adapters copied into a slot.", lambda load: load.adapter_loads),
            "acclimate_worker_restarts": ("Times that a worker was replaced.", lambda load: load.restarts),
        }
        for family_of, families in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, read) in families.items():
                family = family_of(name, text, labels=["model_name"])
                for model, load, _ in loads:
                    family.add_metric([model], read(load))
                yield family
        for name, text in (("passes", "Passes by kind."), ("pass_seconds", "Seconds of passes by kind.")):
            counter = CounterMetricFamily(f"acclimate_{name}", text, labels=["model_name", "kind"])
            for model, load, _ in loads:
                for kind, value in getattr(load, name).items():
                    counter.add_metric([model, kind], value)
            yield counter
        cached = GaugeMetricFamily(
            "acclimate_cached_adapters", "Trained adapters that are kept.", labels=["model_name"]
        )
        alive = GaugeMetricFamily("acclimate_worker_alive", "1 while the worker runs.", labels=["model_name"])
        for model, _, served in loads:
            cached.add_metric([model], len(served.cache))
            alive.add_metric([model], float(served.worker.is_alive))
        yield cached
        yield alive
        if self._service.generator is not None:
            asked = self._service.generator.counts
            yield GaugeMetricFamily("acclimate_vllm_adapters", "Adapters that vLLM holds.", value=asked.loaded)
            events = CounterMetricFamily("acclimate_vllm_events", "What was asked of vLLM.", labels=["event"])
            for event in ("answers", "failures", "loads", "unloads"):
                events.add_metric([event], getattr(asked, event))
            yield events
        if self._service.store is not None:
            counts = self._service.store.counts
            fetched = CounterMetricFamily(
                "acclimate_adapter_store_fetches", "Adapters looked for in the store.", labels=["result"]
            )
            for result, value in (("hit", counts.hits), ("miss", counts.misses), ("unreadable", counts.unreadable)):
                fetched.add_metric([result], value)
            written = CounterMetricFamily(
                "acclimate_adapter_store_writes", "Adapters written to the store.", labels=["result"]
            )
            for result, value in (("written", counts.written), ("failed", counts.failed)):
                written.add_metric([result], value)
            yield fetched
            yield written


class Telemetry:
    """Counts requests; in a registry of its own, so that two servers in one process do not meet.

    Args:
        service: whose workers are read.
        store: that gets a row for every answer; None for none.
        traces: send OpenTelemetry spans and metrics.
    """

    def __init__(self, service: Service, *, store: Store | None = None, traces: bool = False) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(_Collector(service))
        self._store = store
        self._session = f"serve-{int(time.time())}-{os.getpid()}"
        self._content = service.settings.store_content
        self._environment = service.settings.environment
        labels, registry = ["model_name"], self.registry
        self._first = prometheus_client.Histogram(
            "vllm:time_to_first_token_seconds", "Until the first text.", labels, registry=registry, buckets=_SECONDS
        )
        self._whole = prometheus_client.Histogram(
            "vllm:e2e_request_latency_seconds", "Of whole requests.", labels, registry=registry, buckets=_SECONDS
        )
        self._per_token = prometheus_client.Histogram(
            "vllm:request_time_per_output_token_seconds",
            "From the first text to the last, by token.",
            labels,
            registry=registry,
            buckets=_TOKEN_SECONDS,
        )
        self._prompt = prometheus_client.Counter("vllm:prompt_tokens", "Of prompts.", labels, registry=registry)
        self._answer = prometheus_client.Counter("vllm:generation_tokens", "Generated.", labels, registry=registry)
        self._success = prometheus_client.Counter(
            "vllm:request_success", "Answered requests.", ["model_name", "finished_reason"], registry=registry
        )
        self._trained = prometheus_client.Counter(
            "acclimate_ttt_trained_tokens", "That went through training steps.", labels, registry=registry
        )
        self._decided = prometheus_client.Counter(
            "acclimate_ttt_requests", "By what was done.", ["model_name", "status", "reason"], registry=registry
        )
        self._adapting = prometheus_client.Histogram(
            "acclimate_ttt_adaptation_seconds", "Gate and training.", labels, registry=registry, buckets=_SECONDS
        )
        self._refused = prometheus_client.Counter(
            "acclimate_requests_refused", "By HTTP status.", ["status"], registry=registry
        )
        self._otel = _OpenTelemetry() if traces else None

    @property
    def store(self) -> Store | None:
        """The metrics store; None where nothing is recorded."""
        return self._store

    def page(self) -> bytes:
        """Return Prometheus' text."""
        return prometheus_client.generate_latest(self.registry)

    def refused(self, status: int) -> None:
        """Count a request that got an error."""
        self._refused.labels(str(status)).inc()

    def answered(
        self,
        operation: str,
        model: str,
        ticket: Ticket[AskReport],
        report: AskReport,
        *,
        request_id: str,
        actor: str,
        prompt: str,
        assignment: Assignment | None = None,
    ) -> None:
        """Count an answer, and write its row to the metrics store.

        Args:
            operation: ``chat`` or ``text_completion``.
            model: that was asked for.
            ticket: of the request.
            report: of it.
            request_id: of the row.
            actor: id of the API key, or empty.
            prompt: stored only where the operator wants content stored.
            assignment: to the arm of an experiment.
        """
        ended = ticket.ended or time.perf_counter()
        whole = ended - ticket.submitted
        first = (ticket.first_text or ended) - ticket.submitted
        self._whole.labels(model).observe(whole)
        self._first.labels(model).observe(first)
        if report.answer_tokens > 1:
            self._per_token.labels(model).observe((whole - first) / (report.answer_tokens - 1))
        self._prompt.labels(model).inc(report.prompt_tokens)
        self._answer.labels(model).inc(report.answer_tokens)
        self._trained.labels(model).inc(report.trained_tokens)
        self._success.labels(model, "stop" if report.complete else "length").inc()
        self._decided.labels(model, report.status, report.reason or "").inc()
        if report.metadata.adaptation_time:
            self._adapting.labels(model).observe(report.metadata.adaptation_time)
        if self._otel is not None:
            self._otel.answered(operation, model, report, whole=whole, first=first)
        if self._store is not None:
            self._record(report, request_id=request_id, actor=actor, prompt=prompt, assignment=assignment)

    def answered_media(self, report: MediaReport, *, request_id: str, actor: str) -> None:
        """Count an answer about an image or a sound."""
        self._whole.labels("media").observe(report.seconds["total"])
        self._success.labels("media", "stop").inc()
        if self._store is None:
            return
        from acclimate.monitoring import media_request

        try:
            self._store.put(
                media_request(
                    report.to_dict(), session_id=self._session, request_id=request_id, actor=actor or "unknown"
                )
            )
        except (AcclimateError, RuntimeError) as error:
            # An answer is given whatever comes of its record.
            _LOG.warning("a request was not recorded: %s", first_line(error))

    def failed(self, operation: str, model: str, error: Exception, seconds: float) -> None:
        """Count a request that failed while it was worked on."""
        if self._otel is not None:
            self._otel.failed(operation, model, error, seconds)

    def close(self) -> None:
        """Send what is not sent yet, and close the store."""
        if self._otel is not None:
            self._otel.close()
        if self._store is not None:
            self._store.close()

    def _record(
        self, report: AskReport, *, request_id: str, actor: str, prompt: str, assignment: Assignment | None
    ) -> None:
        from acclimate.monitoring import Outcome, language_request

        assert self._store is not None  # noqa: S101 - for the type checker
        try:
            record = language_request(
                report.to_dict(),
                session_id=self._session,
                request_id=request_id,
                actor=actor or "unknown",
                environment=self._environment,
                settings=None if assignment is None else {"experiment": assignment.experiment},
                content={"prompt": prompt} if self._content else None,
            )
            self._store.put(record)
            if assignment is not None:
                self._store.put(
                    Outcome(
                        test_id=assignment.experiment,
                        session_id=self._session,
                        method=assignment.arm,
                        task_type=report.pattern,
                        examples_count=record.examples_count,
                        response_time=record.seconds,
                        request_id=request_id,
                        unit=assignment.unit,
                    )
                )
        except (AcclimateError, RuntimeError) as error:
            # An answer is given whatever comes of its record.
            _LOG.warning("a request was not recorded: %s", first_line(error))


class _OpenTelemetry:
    """Spans and metrics by the conventions for generative AI."""

    def __init__(self) -> None:
        from opentelemetry import metrics, trace
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if "gen_ai_latest_experimental" not in os.environ.get(OPT_IN, "").split(","):
            _LOG.warning("spans follow conventions that are not stable yet; set %s=gen_ai_latest_experimental", OPT_IN)
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "acclimate")})
        self._traces = TracerProvider(resource=resource)
        self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._metrics = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
        self._tracer = self._traces.get_tracer("acclimate", __version__)
        self._kind = trace.SpanKind
        self._status = trace.StatusCode
        self._context = trace.set_span_in_context
        meter: metrics.Meter = self._metrics.get_meter("acclimate", __version__)
        self._duration = meter.create_histogram("gen_ai.server.request.duration", unit="s")
        self._first = meter.create_histogram("gen_ai.server.time_to_first_token", unit="s")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")

    def answered(self, operation: str, model: str, report: AskReport, *, whole: float, first: float) -> None:
        """Record an answered request: a span for it, and one inside for its training."""
        end = time.time_ns()
        start = end - int(whole * 1e9)
        common = self._common(operation, model)
        span = self._tracer.start_span(f"{operation} {model}", kind=self._kind.SERVER, start_time=start)
        span.set_attributes(
            {
                **common,
                "gen_ai.response.model": report.model,
                "gen_ai.response.finish_reasons": ["stop" if report.complete else "length"],
                "gen_ai.usage.input_tokens": report.prompt_tokens,
                "gen_ai.usage.output_tokens": report.answer_tokens,
                "acclimate.ttt.status": report.status,
                "acclimate.ttt.reason": report.reason or "",
            }
        )
        if report.trained_tokens:
            training = self._tracer.start_span(
                f"train {model}", context=self._context(span), start_time=start, kind=self._kind.INTERNAL
            )
            training.set_attributes(
                {
                    "acclimate.ttt.trained_tokens": report.trained_tokens,
                    "acclimate.ttt.steps": report.metadata.training_steps,
                    "acclimate.ttt.examples": report.metadata.examples_used,
                }
            )
            training.end(start + int(report.metadata.adaptation_time * 1e9))
        span.end(end)
        self._duration.record(whole, common)
        self._first.record(first, common)
        self._tokens.record(report.prompt_tokens, {**common, "gen_ai.token.type": "input"})
        self._tokens.record(report.answer_tokens, {**common, "gen_ai.token.type": "output"})

    def failed(self, operation: str, model: str, error: Exception, seconds: float) -> None:
        """Record a request that failed."""
        common = {**self._common(operation, model), "error.type": type(error).__name__}
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {model}", kind=self._kind.SERVER, start_time=end - int(seconds * 1e9)
        )
        span.set_attributes(common)
        span.set_status(self._status.ERROR)
        span.end(end)
        self._duration.record(seconds, common)

    def close(self) -> None:
        """Send what is not sent yet."""
        self._traces.shutdown()
        self._metrics.shutdown()

    @staticmethod
    def _common(operation: str, model: str) -> Mapping[str, str]:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "acclimate",
            "gen_ai.request.model": model,
        }
