// Verifies deliveries with the official Node SDK; the same steps as in ../unwrap.py.

import OpenAI from "openai";
import { VERSION } from "openai/version";

let text = "";
for await (const part of process.stdin) text += part;
const given = JSON.parse(text);
const client = new OpenAI({ apiKey: "none", webhookSecret: given.secret });
const found = [];
for (const delivery of given.deliveries) {
  const event = await client.webhooks.unwrap(delivery.body, delivery.headers);
  const isRefused = await client.webhooks.unwrap(delivery.body + " ", delivery.headers).then(
    () => false,
    (error) => error instanceof OpenAI.InvalidWebhookSignatureError,
  );
  found.push({ type: event.type, class: null, id: event.id, object: event.object, data: event.data.id, forged_is_refused: isRefused });
}
console.log(JSON.stringify({ sdk: `node ${VERSION}`, found }));
