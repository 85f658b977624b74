"""Speed of generation with guesses from the conversation against plain generation.

    python scripts/bench_drafts.py BUNDLE --rounds 3

For each prompt a chat model answers greedily both ways in turn; the answers must be equal. Prints
tokens per second of each, their ratio (medians over the rounds) and how many guesses were right,
then the median ratio of prompts whose answer repeats the prompt and of others. Small models edit
JSON only when an edit like it stands before; code they write anew in any case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from statistics import median
from typing import Any

from ondevice.runtime.engine import Engine

TEXT = (
    "The harbour wakes before the town does. At five the first boats come in, low in the "
    "water, and the gulls follow them along the wall. Men in yellow coats throw ropes to boys "
    "who were not yet born when these boats were built, and the boys catch them without "
    "looking. By six the fish are on the ice, by seven they are sold, and by eight the "
    "harbour is asleep again."
)
CODE = '''def total_price(items, tax_rate):
    """Sum of the prices of all items, with tax."""
    total = 0.0
    for item in items:
        price = item["price"] * item["quantity"]
        if item["discount"] is not None:
            price = price * (1.0 - item["discount"])
        total = total + price
    return total * (1.0 + tax_rate)
'''


def records(people: dict[str, str], **edit: object) -> str:
    """JSON of objects of which `edit` changes a field each: active=False, or city="town"."""
    place = str(edit.get("city", "city"))
    active = edit.get("active", True)
    found = [
        {"id": i, "name": name, place: city, "active": active, "tags": ["new", "paid"]}
        for i, (name, city) in enumerate(people.items())
    ]
    return json.dumps(found, indent=2)


def edited(task: str, **edit: object) -> tuple[str, ...]:
    """A question, its answer, and the question to answer."""
    before = {"Ken": "Berlin", "Barbara": "Boston"}
    people = {"Ada": "London", "Grace": "New York", "Alan": "Manchester", "Edsger": "Austin"}
    return (
        f"{task}:\n\n{records(before)}",
        records(before, **edit),
        f"{task}:\n\n{records(people)}",
    )


REPEATING = {
    "rewrite": (f"Repeat this text exactly, but write 'port' for 'harbour':\n\n{TEXT}",),
    "copy": (f"Copy the following text word by word:\n\n{TEXT}",),
    "json": edited('Set "active" to false in each object and print the whole JSON', active=False),
    "json field": edited('Print this JSON again with "city" renamed to "town"', city="town"),
}
QUESTIONS = {
    "poem": "Write a poem about the sea.",
    "sky": "Why is the sky blue?",
    "story": "Tell a story about a dog who wants to fly.",
    "list": "Name ten animals and say one sentence about each.",
    "history": "What happened in the year 1969?",
    "letter": "Write a letter to a landlord about a broken window.",
    "code": f"Rename the variable `total` to `result` in this code and print it all:\n\n{CODE}",
}
OTHERS = {name: (question,) for name, question in QUESTIONS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft-tokens", type=int, default=0)
    parser.add_argument("--only", help="substring of prompts' names")
    parser.add_argument("--json", action="store_true", help="print all rows as one line of JSON")
    options = parser.parse_args()
    with (
        Engine(options.bundle, threads=options.threads, draft_tokens=-1) as plain,
        Engine(
            options.bundle, threads=options.threads, draft_tokens=options.draft_tokens
        ) as drafting,
    ):
        found = {}
        for group, prompts in (("repeating", REPEATING), ("others", OTHERS)):
            rows = {
                name: compare(plain, drafting, name, turns, options)
                for name, turns in prompts.items()
                if options.only is None or options.only in name
            }
            found[group] = rows
            ratios = [row["ratio"] for row in rows.values()]
            if ratios and not options.json:
                print(f"{group}: median ratio {median(ratios):.2f}, least {min(ratios):.2f}")
    if options.json:
        print(json.dumps(found))


def compare(
    plain: Engine, drafting: Engine, name: str, turns: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure a chat's last turn, and print its row unless all are printed as JSON."""
    roles = ("user", "assistant")
    said_before = "".join(
        f"<|im_start|>{roles[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns)
    )
    tokens = plain.tokenizer.encode(f"{said_before}<|im_start|>assistant\n")
    speeds: dict[str, list[float]] = {"plain": [], "drafting": []}
    said = []
    for _ in range(options.rounds):
        for kind, engine in (("plain", plain), ("drafting", drafting)):
            with engine.conversation() as conversation:
                answer = list(conversation.generate_tokens(tokens, options.max_tokens))
                speeds[kind].append(conversation.stats.tokens_per_second)
                said.append(answer)
                stats = conversation.stats
    assert all(answer == said[0] for answer in said), f"{name}: the answers differ"
    ratios = [b / a for a, b in zip(speeds["plain"], speeds["drafting"], strict=True)]
    row = {
        "tokens": len(said[0]),
        "plain": median(speeds["plain"]),
        "drafting": median(speeds["drafting"]),
        "ratio": median(ratios),
        "accepted": stats.accepted_tokens,
        "drafted": stats.drafted_tokens,
    }
    if not options.json:
        print(
            f"{name:12} {row['tokens']:4} tokens  plain {row['plain']:7.1f}  drafting "
            f"{row['drafting']:7.1f} tok/s  ratio {row['ratio']:.2f}  "
            f"right {row['accepted']} of {row['drafted']}",
            flush=True,
        )
    return row


if __name__ == "__main__":
    main()
