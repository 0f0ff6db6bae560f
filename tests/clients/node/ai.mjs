// The AI SDK with its provider for OpenAI, unmodified. Only OPENAI_BASE_URL and OPENAI_API_KEY point
// it at the server. Calls go to /v1/responses, or to /v1/chat/completions with `openai.chat`; its
// batches have lines of /v1/responses only.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { openai } from "@ai-sdk/openai";
import { embed, embedMany, generateText, isStepCount, jsonSchema, Output, streamText, tool } from "ai";
import {
  experimental_getBatchResults as getBatchResults,
  experimental_getBatchStatus as getBatchStatus,
  experimental_listBatches as listBatches,
  experimental_startBatch as startBatch,
} from "ai";

const CHAT = "mistral-small-3-1";
const EMBEDDING = "bge-m3";
const prompt = "Where is my parcel?";
const models = { responses: openai(CHAT), chat: openai.chat(CHAT) };
let used = 0;

function count({ inputTokens, outputTokens }) {
  assert.ok(inputTokens > 0 && outputTokens > 0, `${inputTokens}, ${outputTokens}`);
  used += inputTokens + outputTokens;
}

async function text(model) {
  const { text, usage, finishReason } = await generateText({ model, prompt, instructions: "Be brief.", maxRetries: 0 });
  assert.ok(text && finishReason === "stop", `${text} ${finishReason}`);
  count(usage);
  const cut = await generateText({ model, prompt, maxOutputTokens: 16, maxRetries: 0 });
  assert.ok(cut.usage.outputTokens <= 16);
}

async function stream(model) {
  const answer = streamText({ model, prompt, maxRetries: 0, onError: ({ error }) => assert.fail(error) });
  const parts = [];
  for await (const part of answer.textStream) parts.push(part);
  assert.ok(parts.length > 1, `${parts}`);
  assert.equal(parts.join(""), await answer.text);
  assert.equal(await answer.finishReason, "stop");
  count(await answer.usage);
}

async function call(model) {
  const seen = [];
  const weather = tool({
    description: "The weather of a city",
    inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
    execute: async ({ city }) => seen.push(city) && { degrees: 21 },
  });
  const asked = { model, prompt: "Weather in Berlin?", tools: { weather }, maxRetries: 0 };
  const { toolCalls, finishReason } = await generateText({ ...asked, toolChoice: "required" });
  assert.deepEqual([toolCalls[0].toolName, typeof toolCalls[0].input.city, finishReason], ["weather", "string", "tool-calls"]);
  assert.equal(typeof seen[0], "string");
  // The result of the call is sent back in a second request.
  const { steps } = await generateText({ ...asked, stopWhen: isStepCount(2) });
  assert.ok(steps.length >= 1);
  const streamed = streamText({ ...asked, toolChoice: "required", onError: ({ error }) => assert.fail(error) });
  await streamed.consumeStream();
  assert.equal((await streamed.toolCalls)[0].toolName, "weather");
}

async function object(model) {
  const schema = jsonSchema({
    type: "object",
    properties: { category: { type: "string", enum: ["billing", "shipping"] } },
    required: ["category"],
    additionalProperties: false,
  });
  const { output } = await generateText({ model, prompt, output: Output.object({ schema }), maxRetries: 0 });
  assert.ok(["billing", "shipping"].includes(output.category), JSON.stringify(output));
}

async function vectors() {
  const model = openai.embedding(EMBEDDING);
  const one = await embed({ model, value: "a parcel", maxRetries: 0 });
  const { embeddings, usage } = await embedMany({ model, values: ["a parcel", "a card"], maxRetries: 0 });
  assert.deepEqual(embeddings.length, 2);
  assert.deepEqual(embeddings[0], one.embedding);
  assert.ok(usage.tokens > 0);
}

async function refusal() {
  await assert.rejects(generateText({ model: openai("mistral-small-9"), prompt, maxRetries: 0 }), (error) => {
    assert.equal(error.statusCode, 404);
    assert.match(error.message, /mistral-small-3-1/);
    return true;
  });
}

async function batch() {
  const request = (id, more = {}) => ({ id, type: "text", model: CHAT, prompt, ...more });
  const started = await startBatch({ provider: openai, requests: [request("a"), request("b", { maxOutputTokens: 16 })] });
  assert.deepEqual(started.warnings, []);
  const deadline = Date.now() + 90_000;
  let status;
  do {
    await sleep(100);
    status = await getBatchStatus({ provider: openai, batch: started });
    assert.ok(Date.now() < deadline, JSON.stringify(status));
  } while (status.status === "pending");
  assert.deepEqual([status.status, status.requestCounts.completed], ["completed", 2], JSON.stringify(status));
  const results = [];
  for await (const result of getBatchResults({ provider: openai, batch: started })) results.push(result);
  assert.deepEqual(results.map(({ id, status }) => [id, status]), [["a", "succeeded"], ["b", "succeeded"]], JSON.stringify(results));
  results.forEach((result) => assert.ok(result.text && (count(result.usage), true)));
  const { batches } = await listBatches({ provider: openai, limit: 1 });
  assert.equal(batches[0].batchId, started.batchId);
}

for (const model of Object.values(models)) {
  await text(model);
  await stream(model);
  await call(model);
  await object(model);
}
await vectors();
await refusal();
await batch();
const { version } = JSON.parse(await readFile(new URL("./node_modules/ai/package.json", import.meta.url), "utf8"));
process.stdout.write(JSON.stringify({ sdk: `ai ${version}`, usage: used }));
