"""Verifies deliveries with the official SDK of this environment: reads them as JSON on stdin, and
prints what the SDK made of each.
"""

import json
import sys

import openai
from openai import InvalidWebhookSignatureError, OpenAI

given = json.load(sys.stdin)
client = OpenAI(api_key="none", webhook_secret=given["secret"])
found = []
for delivery in given["deliveries"]:
    event = client.webhooks.unwrap(delivery["body"], delivery["headers"])
    try:
        client.webhooks.unwrap(delivery["body"] + " ", delivery["headers"])
    except InvalidWebhookSignatureError:
        is_refused = True
    else:
        is_refused = False
    found.append(
        {
            "type": event.type,
            "class": type(event).__name__,
            "id": event.id,
            "object": event.object,
            "data": event.data.id if hasattr(event.data, "id") else event.data["id"],
            "forged_is_refused": is_refused,
        }
    )
print(json.dumps({"sdk": f"python {openai.__version__}", "found": found}))  # noqa: T201
