"""The Native block of any rows says what the rows say."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from projections.tables import Table, block

TABLE = Table(
    name="all_kinds",
    columns={
        "name": "LowCardinality(String)",
        "text": "String",
        "data": "String",
        "count": "UInt16",
        "amount": "Decimal(18, 8)",
        "maybe": "Nullable(Decimal(18, 8))",
        "texts": "Array(LowCardinality(String))",
        "wide": "Decimal(38, 8)",
    },
    key=("count",),
    version="count",
)
plain = st.text(alphabet="abc-:0", max_size=12)
texts = plain | st.text(max_size=40) | st.text(alphabet="xé", min_size=100, max_size=300)
rows = st.tuples(
    st.sampled_from(["", "EURUSD", "é"]) | texts,
    texts,
    st.binary(max_size=300) | texts,
    st.integers(0, 2**16 - 1),
    st.integers(-(10**18), 10**18),
    st.none() | st.integers(-(10**18), 10**18),
    st.lists(texts, max_size=3),
    st.integers(-(10**38) + 1, 10**38 - 1),
)


class Reader:
    """A block, read value by value as the format is described."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, size: int) -> bytes:
        found = self.data[self.place : self.place + size]
        self.place += size
        return found

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def varint(self) -> int:
        found = shift = 0
        while (byte := self.number(1)) & 0x80:
            found |= (byte & 0x7F) << shift
            shift += 7
        return found | byte << shift

    def text(self) -> bytes:
        return self.take(self.varint())

    def column(self, kind: str, count: int) -> list[Any]:
        if kind == "String":
            return [self.text() for _ in range(count)]
        if kind.startswith("Nullable("):
            nulls = [self.number(1) for _ in range(count)]
            return [None if null else one for null, one in zip(nulls, self.column(kind[9:-1], count), strict=True)]
        if kind.startswith("Array("):
            ends = [self.number(8) for _ in range(count)]
            inner = self.column(kind[6:-1], ends[-1])
            return [inner[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        size = {"UInt16": 2, "Decimal(18, 8)": 8, "Decimal(38, 8)": 16}[kind]
        return [self.number(size, signed=kind != "UInt16") for _ in range(count)]

    def columns(self) -> Iterator[list[Any]]:
        columns, count = self.varint(), self.varint()
        for _ in range(columns):
            self.text()
            kind = self.text().decode()
            yield self.column(kind, count)


def stored(value: Any) -> Any:
    """The value as the database has it: text as bytes."""
    if isinstance(value, list):
        return [stored(one) for one in value]
    return value.encode() if isinstance(value, str) else value


@given(st.lists(rows, min_size=1, max_size=40))
def test_a_block_holds_the_values_of_its_rows(given_rows: list[tuple[Any, ...]]) -> None:
    reader = Reader(block(TABLE, given_rows))
    found = list(zip(*reader.columns(), strict=True))
    assert found == [tuple(stored(value) for value in row) for row in given_rows]
    assert reader.place == len(reader.data)


@given(rows, st.integers(1, 50), st.lists(rows, max_size=2))
def test_rows_that_are_alike_are_as_many_as_there_were(one: tuple[Any, ...], times: int, others: Any) -> None:
    alike = [*[one] * times, *others, one]
    reader = Reader(block(TABLE, alike))
    assert list(zip(*reader.columns(), strict=True)) == [tuple(stored(value) for value in row) for row in alike]
