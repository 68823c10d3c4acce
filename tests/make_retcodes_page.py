"""Writes docs/retcodes.md from the table of return codes: `make docs`."""

from pathlib import Path

from gateway.retcodes import BY_ACTION, LAST_ERRORS, RETCODES, Retcode, RetcodeClass
from gateway.simulated import constants

PAGE = Path(__file__).parents[1] / "docs" / "retcodes.md"

CLASSES = {
    RetcodeClass.SUCCESS: "The server did it.",
    RetcodeClass.RETRIABLE: "It states that it did nothing. A new attempt follows, with fresh prices.",
    RetcodeClass.WAIT: "Nothing was done, and nothing will be until something changes. The order waits for that.",
    RetcodeClass.AMBIGUOUS: "It may have been done. The order is looked for at the broker before anything else.",
    RetcodeClass.FATAL: "Nothing was done, and the same request will not pass. The order ends.",
}
ACTIONS = {
    value: name.removeprefix("TRADE_ACTION_")
    for name, value in vars(constants).items()
    if name.startswith("TRADE_ACTION_")
}


def cells(code: Retcode) -> str:
    """Class, description and advice."""
    tries = "" if code.max_retries is None else f", {code.max_retries} more"
    return f"{code.retcode_class}{tries} | {code.description} | {code.advice}"


def page() -> str:
    return "\n".join(
        [
            "# Return codes, and what follows from them",
            "",
            "Written from the table in `gateway/retcodes.py` by `make docs`; a test holds it current. How each code",
            "comes about at the simulated broker stands in [mt5.md](mt5.md#return-codes).",
            "",
            "## Classes",
            "",
            "| class | meaning |",
            "|---|---|",
            *(f"| {name} | {meaning} |" for name, meaning in CLASSES.items()),
            "",
            "A code that is not listed is ambiguous.",
            "",
            "## Codes",
            "",
            "| code | name | class | description | advice |",
            "|---|---|---|---|---|",
            *(f"| {code.code} | {code.name} | {cells(code)} |" for _, code in sorted(RETCODES.items())),
            "",
            "## Where the kind of request changes the meaning",
            "",
            "| code | name | action | class | description | advice |",
            "|---|---|---|---|---|---|",
            *(
                f"| {code.code} | {code.name} | {ACTIONS[action]} | {cells(code)} |"
                for (_, action), code in sorted(BY_ACTION.items())
            ),
            "",
            "## Errors of a call",
            "",
            "`order_send` returned None; `last_error()` says why, and that says what became of the order. Where the",
            "link is broken, every later call fails too, until the terminal is initialised again.",
            "",
            "| code | name | text | the order | link |",
            "|---|---|---|---|---|",
            *(
                f"| {error.code} | {error.name} | {error.text} | {error.order_effect.replace('_', ' ')} "
                f"| {'broken' if error.link_broken else ''} |"
                for error in LAST_ERRORS.values()
            ),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
