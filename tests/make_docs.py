"""Writes docs/states.md from the table of states: `make docs`.

Arrows that leave every state of a group are drawn once, from the group; late facts, which may come in nearly every
state, meet in one point.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ledger.order import AT_BROKER, CONCLUDED, IDLE, TRANSITIONS, Status
from ledger.order_events import FillCorrected

PAGE = Path(__file__).parents[1] / "docs" / "states.md"

GROUPS = {
    "idle": ("idle: nothing is at the broker", IDLE),
    "sent": ("the broker may have it", frozenset({Status.SENDING, Status.UNKNOWN})),
    "held": ("the broker has it", frozenset({Status.PLACED, Status.PARTIALLY_FILLED})),
    "concluded": ("ended by us, or by an answer", CONCLUDED),
    "ended": ("ended at the broker", frozenset({Status.FILLED, Status.CANCELLED, Status.EXPIRED})),
}
MEANING = {
    Status.NEW: "Nobody has asked for it yet.",
    Status.REQUESTED: "It is in the ledger; `order_check` is next.",
    Status.READY: "It may be sent: it was checked, or the last attempt provably did not reach the broker.",
    Status.WAITING: "An attempt failed in a way that may pass, or is proven absent; the next one has its time.",
    Status.PARKED: "It cannot be traded now, for example because the market is closed; it is tried again.",
    Status.SENDING: "The intent is recorded; whether the broker has the order, the answer will tell.",
    Status.UNKNOWN: "No answer, or one that settles nothing: it is looked for at the broker, never guessed.",
    Status.PLACED: "The broker holds it as a working order.",
    Status.PARTIALLY_FILLED: "A part was dealt; the rest works, or its end is still to show.",
    Status.FILLED: "All of it was dealt.",
    Status.COMPLETED: "A request that makes no deal (modify, cancel) took effect.",
    Status.CANCELLED: "The broker cancelled it, or what remained of it.",
    Status.EXPIRED: "It reached its expiration at the broker, or what remained of it did.",
    Status.REFUSED: "A rule of ours spoke against it: malformed, not allowed, halted.",
    Status.STALE: "It was too old to be sent.",
    Status.REJECTED: "The broker said no, finally.",
    Status.FAILED: "It is not at the broker and will not be sent: proven absent, given up, or by an operator's word.",
}
NOTES = """\
- **A fact of the broker is never refused.** What is not in the table leaves the state as it is; the event is recorded
  all the same.
- **Idle.** Only from here an attempt starts, so at most one is under way. A deal, a working order or a success that
  shows of an earlier attempt moves the order out of here: it is not sent again.
- **Ended by us, or by an answer.** Our conclusion gives way to what the broker shows, and the order may be open again.
- **Ended at the broker.** A deal that comes after a cancellation or expiration counts. The order is filled when nothing
  remains; otherwise it stays ended, for nothing more is to come.
- **Flagged.** Each of these late facts stands beside an `order.anomaly_detected`: a person must look.
- **A corrected fill** moves the order between `filled` and `partially_filled` only when what remains says so.
- **Unknown** ends by evidence, by the answer that comes after all, or by an operator's word. Time alone ends nothing.
"""

Arrow = tuple[str, str]  # from a state or a group, to a state


def is_late(state: Status, to: Status) -> bool:
    """Whether a fact that leads here from there comes against what we held to be over."""
    return (state in IDLE and to in AT_BROKER - {Status.SENDING} | {Status.FILLED, Status.COMPLETED}) or (
        state in CONCLUDED
    )


def arrows() -> dict[Arrow, list[str]]:
    """What is drawn: the topics on each arrow, without their `order.`, late facts and loops left out."""
    sources: dict[tuple[str, Status], set[Status]] = defaultdict(set)
    for (state, event), to in TRANSITIONS.items():
        if state is not to and not is_late(state, to):
            sources[event.topic().removeprefix("order."), to].add(state)
    drawn: dict[Arrow, list[str]] = defaultdict(list)
    for (topic, to), states in sorted(sources.items()):
        left = set(states)
        for name, (_, members) in GROUPS.items():
            # From a group to one of its own an arrow cannot be drawn.
            if members <= left and to not in members:
                left -= members
                drawn[name, to].append(topic)
        for state in sorted(left):
            drawn[state, to].append(topic)
    return drawn


def diagram() -> str:
    late = sorted({to for (state, _), to in TRANSITIONS.items() if state is not to and is_late(state, to)})
    lines = ["stateDiagram-v2", f"    [*] --> {Status.NEW}"]
    for name, (title, members) in GROUPS.items():
        lines += [f'    state "{title}" as {name} {{', *(f"        {one}" for one in sorted(members)), "    }"]
    lines += ["    state late <<choice>>"]
    lines += [f"    {start} --> {to}: {' / '.join(topics)}" for (start, to), topics in sorted(arrows().items())]
    lines += ["    idle --> late: a late fact", "    concluded --> late: a late fact"]
    lines += [f"    late --> {to}" for to in late]
    return "\n".join(["```mermaid", *lines, "```"])


def named(states: Iterable[Status]) -> str:
    """The states in words; whole groups by their name."""
    left, words = set(states), []
    for name, (_, members) in GROUPS.items():
        if members <= left:
            left -= members
            words.append(f"any {name}")
    return ", ".join([*words, *(f"`{one}`" for one in sorted(left))])


def state_table() -> str:
    home = {state: name for name, (_, members) in GROUPS.items() for state in members}
    rows = [f"| `{state}` | {home.get(state, '')} | {MEANING[state]} |" for state in Status]
    return "\n".join(["| state | group | meaning |", "|---|---|---|", *rows])


def move_table() -> str:
    moves: dict[tuple[str, str], list[Status]] = defaultdict(list)
    for (state, event), to in TRANSITIONS.items():
        condition = ""
        if event is FillCorrected:
            condition = ", if nothing remains" if to is Status.FILLED else ", if something remains"
        moves[event.topic() + condition, to].append(state)
    order = {topic: place for place, topic in enumerate(dict.fromkeys(topic for topic, _ in moves))}
    rows = [
        f"| `{topic.partition(',')[0]}`{''.join(topic.partition(',')[1:])} | {named(states)} | `{to}` |"
        for (topic, to), states in sorted(moves.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    ]
    return "\n".join(["| event | in | leads to |", "|---|---|---|", *rows])


def page() -> str:
    return "\n".join(
        [
            "# The states of an order",
            "",
            "Written from the table of states in `ledger/order.py` by `make docs`; a test holds it current.",
            "",
            diagram(),
            "",
            "Events are named without their `order.`; an arrow from a box leaves every state in it.",
            "",
            "## States",
            "",
            state_table(),
            "",
            "## Late facts, and what the picture leaves out",
            "",
            NOTES,
            "## Every move",
            "",
            "An event that is not listed with a state leaves it as it is.",
            "",
            move_table(),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE)
