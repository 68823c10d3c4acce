"""Traces from outside: a collector hears of an order as a child of its sender's span."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.service import Listener, Service, market_order, serving

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.spans: list = []
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Request(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.asked.append((self.path, self.headers.get("x-tenant", "")))
        body = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.spans += [span for one in body.resource_spans for scope in one.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector():
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def traced_order(service: Service) -> dict[str, str]:
    """Sends an order from within a span; the headers of the news of its fill."""
    heard: asyncio.Queue = asyncio.Queue()
    async with Listener(service.info["nats_url"]) as listener:
        await listener.connection.subscribe("broker.fill.>", cb=heard.put)
        await listener.connection.flush()
        payload = orjson.dumps(market_order("traced-1"))
        js = listener.connection.jetstream()
        await js.publish("orders.submitted.EURUSD", payload, headers={"traceparent": PARENT})
        async with asyncio.timeout(20):
            return (await heard.get()).headers


def test_a_collector_hears_of_an_order_as_a_child_of_its_senders_span(tmp_path, collector):
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=desk"}
    with serving(tmp_path / "d", **settings) as service:
        headers = asyncio.run(traced_order(service))
        service.stop()  # which sends what is left
    assert headers["traceparent"] == PARENT
    spans = {span.name: span for span in collector.spans}
    order, attempt = spans["order"], spans["order_send"]
    assert (order.trace_id.hex(), order.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert attempt.parent_span_id == order.span_id
    assert set(collector.asked) == {("/v1/traces", "desk")}
