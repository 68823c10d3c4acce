"""A text that must not be shown: passwords, tokens, keys, addresses that may hold them."""


class Secret:
    """A text that never shows itself. `reveal()` is called where it is used, and nowhere else."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "••••" if self._text else "(none)"
