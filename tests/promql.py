"""What Prometheus queries ask for, read by Prometheus' own grammar."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
_MATCH = {
    "Equal": lambda have, want: have == want,
    "NotEqual": lambda have, want: have != want,
    "Re": lambda have, want: re.fullmatch(want, have) is not None,
    "NotRe": lambda have, want: re.fullmatch(want, have) is None,
}


class Selector:
    """A metric as a query names it, and the labels it asks for."""

    def __init__(self, parsed: Any) -> None:
        self.name = parsed.name
        self.matchers = [(m.name, str(m.op).rpartition(".")[2], m.value) for m in parsed.matchers.matchers]

    def takes(self, labels: dict[str, str]) -> bool:
        return all(_MATCH[op](labels.get(name, ""), value) for name, op, value in self.matchers if name not in SCRAPED)

    def __repr__(self) -> str:
        return f"{self.name}{self.matchers}"


SCRAPED = ("job", "instance")  # what Prometheus adds


def selectors(query: str) -> list[Selector]:
    """Raises ValueError for what is no query."""
    query = query.replace("$__rate_interval", "5m").replace("$instance", ".*")
    return [Selector(one) for one in _walk(promql_parser.parse(query))]


def _walk(node: Any) -> Iterator[Any]:
    match node:
        case promql_parser.VectorSelector():
            yield node
        case promql_parser.MatrixSelector():
            yield node.vector_selector
        case promql_parser.BinaryExpr():
            yield from _walk(node.lhs)
            yield from _walk(node.rhs)
        case promql_parser.Call():
            for one in node.args:
                yield from _walk(one)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _walk(node.expr)
        case promql_parser.SubqueryExpr():
            yield from _walk(node.expr)


def rules() -> dict[str, str]:
    """The query of every alert, by its name."""
    parsed = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
    return {rule["alert"]: rule["expr"] for group in parsed["groups"] for rule in group["rules"]}


def panels() -> list[tuple[str, str]]:
    """Title and query of every target of the dashboard."""
    dashboard = json.loads((DEPLOY / "grafana" / "order-ledger.json").read_text())
    return [(one["title"], target["expr"]) for one in dashboard["panels"] for target in one.get("targets", ())]
