"""Makes the batch files of this folder from the texts in `sources/` and `help-centre.json`.

Run it to get the same bytes again: `.venv/bin/python examples/make_examples.py`.
"""

import json
import random
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHAT_MODEL = "mistral-small-3-1"
RERANK_MODEL = "bge-reranker-v2"
LABELS = ("billing", "technical", "account", "shipping", "refund", "feedback")
CLASSIFY = (
    f"Classify the customer's support ticket into exactly one of: {', '.join(LABELS)}. Answer with"
    " the label only."
)
SUMMARIZE = "Summarize the customer's support ticket for the next agent in one sentence."
# Placeholders, which every night fills in with its own dates.
AUTO_REPLY = (
    "Halden, a smart-home shop, works through last night's support tickets. Purchases made since"
    " {{scheduled_date-30d:%d %B %Y}} can be returned. Write the automatic reply for the topic that"
    " is named, in at most three sentences."
)
CAME = (
    "The ticket came on {{scheduled_date-1d:%A, %d %B %Y}}; a person answers by"
    " {{scheduled_date+1d:%A}}."
)
TICKETS = 300
SEARCHES = 300
# English tickets outnumber the other languages, as they do in the shop.
LANGUAGES = {"en": 6, "de": 2, "fr": 2, "es": 2}
# More output than the model's context window holds: a backend refuses such a line.
TOO_MANY_TOKENS = 200_000

Json = dict[str, Any]


def tickets(count: int) -> list[str]:
    """Support tickets in several languages, every one different, topics evenly mixed."""
    pools = tomllib.loads((HERE / "sources/tickets.toml").read_text("utf-8"))
    rng = random.Random(31)
    written: dict[str, None] = {}
    while len(written) < count:
        language = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]
        label = LABELS[len(written) % len(LABELS)]
        written[write_ticket(rng, pools["slots"], pools[language], label, language)] = None
    return list(written)


def write_ticket(rng: random.Random, slots: Json, pool: Json, label: str, language: str) -> str:
    """One ticket: an opening, the matter, a closing, with the braces filled."""
    opening = rng.choice(pool["openings"])
    matter = rng.choice(pool[label])
    if not opening or opening.endswith((". ", ": ")):
        matter = matter[0].upper() + matter[1:]
    values = {slot: rng.choice(choices) for slot, choices in slots.items()}
    values["order"] = f"HLD-{rng.randrange(104_000, 987_000)}"
    values["amount"] = amount(rng.randrange(299, 24_999), language)
    template: str = opening + matter + rng.choice(pool["closings"])
    return template.format(**values)


def amount(cents: int, language: str) -> str:
    """A sum as it is written in that language."""
    text = f"{cents / 100:.2f}"
    return f"€{text}" if language == "en" else f"{text.replace('.', ',')} €"


def searches(count: int) -> list[tuple[str, list[str]]]:
    """Customers' searches, each with 8 to 12 passages of the help centre, one of them right."""
    passages = {
        article["id"]: f"{article['title']}. {article['text']}"
        for article in json.loads((HERE / "help-centre.json").read_text("utf-8"))
    }
    questions = tomllib.loads((HERE / "sources/questions.toml").read_text("utf-8"))
    asked = [(question, article) for article, texts in questions.items() for question in texts]
    rng = random.Random(568)
    rng.shuffle(asked)
    # Some customers search twice, and other passages come up.
    asked = (asked + asked)[:count]
    return [(question, candidates(rng, passages, article)) for question, article in asked]


def candidates(rng: random.Random, passages: dict[str, str], right: str) -> list[str]:
    """The right passage among others, in no order."""
    others = rng.sample(sorted(set(passages) - {right}), rng.randrange(7, 12))
    chosen = [right, *others]
    rng.shuffle(chosen)
    return [passages[id] for id in chosen]


def chat(model: str, user: str, system: str | None = None, **options: Any) -> Json:
    """The body of a chat completion."""
    messages = [{"role": "system", "content": system}] if system else []
    return {"model": model, "messages": [*messages, {"role": "user", "content": user}], **options}


def line(custom_id: str, url: str, body: Json) -> Json:
    """One request of a batch file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def support_tickets() -> Iterator[Json]:
    """A request for each ticket: Mistral Small 3.1 gives it a label."""
    for number, text in enumerate(tickets(TICKETS), 1):
        yield line(
            f"ticket-{number:04d}",
            "/v1/chat/completions",
            chat(CHAT_MODEL, text, CLASSIFY, max_tokens=8, temperature=0),
        )


def help_centre_rerank() -> Iterator[Json]:
    """A request for each search: BGE Reranker v2 ranks its passages."""
    for number, (query, documents) in enumerate(searches(SEARCHES), 1):
        yield line(
            f"search-{number:04d}",
            "/v1/rerank",
            {"model": RERANK_MODEL, "query": query, "documents": documents, "top_n": 3},
        )


def mixed_models() -> Iterator[Json]:
    """Both models in one file, through chat completions; six lines are refused by their model."""
    url = "/v1/chat/completions"
    for number, text in enumerate(tickets(30), 1):
        yield line(f"summary-{number:02d}", url, chat(CHAT_MODEL, text, SUMMARIZE, max_tokens=60))
    for number, (query, documents) in enumerate(searches(24), 1):
        question = json.dumps(
            {"query": query, "documents": documents, "top_n": 3}, ensure_ascii=False
        )
        yield line(f"ranked-{number:02d}", url, chat(RERANK_MODEL, question))
    for number, text in enumerate(tickets(33)[30:], 1):
        yield line(
            f"too-long-{number}", url, chat(CHAT_MODEL, text, SUMMARIZE, max_tokens=TOO_MANY_TOKENS)
        )
    for number, (query, _) in enumerate(searches(27)[24:], 1):
        yield line(f"no-passages-{number}", url, chat(RERANK_MODEL, query))


def nightly_tickets() -> Iterator[Json]:
    """A template for a schedule: each night the automatic replies of the day, one per topic."""
    for label in LABELS:
        body = chat(CHAT_MODEL, f"Topic: {label}. {CAME}", AUTO_REPLY, max_tokens=120) | {
            "user": "{{run_id}}"
        }
        yield line(f"auto-reply-{label}-" + "{{scheduled_date}}", "/v1/chat/completions", body)


def invalid() -> Iterator[str]:
    """A valid line, then lines that validation refuses, each for another reason."""
    url = "/v1/chat/completions"
    body = chat(CHAT_MODEL, "My parcel has not arrived.")
    wrong = [
        line("right", url, body),
        line("right", url, body),
        line("wrong-url", "/v1/completions", body),
        line("wrong-method", url, body) | {"method": "GET"},
        line("unknown-model", url, body | {"model": "mistral-small-9"}),
        line("streamed", url, body | {"stream": True}),
        line("no-messages", url, {"model": CHAT_MODEL}),
        {key: value for key, value in line("", url, body).items() if key != "custom_id"},
    ]
    yield from map(render, wrong)
    yield '{"custom_id": "cut-off", "method": "POST", "url": "/v1/chat/comple\n'


def render(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


FILES = {
    "support-tickets.jsonl": support_tickets,
    "help-centre-rerank.jsonl": help_centre_rerank,
    "mixed-models.jsonl": mixed_models,
    "nightly-tickets.template.jsonl": nightly_tickets,
}


def rendered() -> dict[str, str]:
    """Every file of this folder that is made, by name."""
    files = {name: "".join(map(render, lines())) for name, lines in FILES.items()}
    return files | {"invalid.jsonl": "".join(invalid())}


def write(files: Iterable[tuple[str, str]]) -> None:
    for name, text in files:
        (HERE / name).write_text(text, "utf-8", newline="")


if __name__ == "__main__":
    write(rendered().items())
