// The whole way of a batch through the official Node SDK; the same steps as in ../flow.py.
// Only OPENAI_BASE_URL and OPENAI_API_KEY point it at the server.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { toFile } from "openai";

const CHAT = "mistral-small-3-1";
const RERANK = "bge-reranker-v2";
const ENDPOINT = "/v1/chat/completions";
const ENDED = ["completed", "failed", "expired", "cancelled"];
const client = new OpenAI({ maxRetries: 0 });

const line = (custom_id, content, model = CHAT) => ({
  custom_id,
  method: "POST",
  url: ENDPOINT,
  body: { model, messages: [{ role: "user", content }], max_tokens: 8 },
});
const jsonl = (lines) => Buffer.from(lines.map((item) => JSON.stringify(item) + "\n").join(""));
const parse = (text) => text.trimEnd().split("\n").map((item) => JSON.parse(item));
const text = async (fileId) => (await client.files.content(fileId)).text();

async function collect(pages) {
  const ids = [];
  for await (const item of pages) ids.push(item.id);
  return ids;
}

async function wait(batchId) {
  const deadline = Date.now() + 90_000;
  for (;;) {
    const batch = await client.batches.retrieve(batchId);
    if (ENDED.includes(batch.status)) return batch;
    assert.ok(Date.now() < deadline, JSON.stringify(batch));
    await sleep(100);
  }
}

async function rejects(kind, call, code) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.ok(error.message && error.requestID, `${error}`);
    if (code) assert.equal(error.code, code);
    return true;
  });
}

async function upload(name, data) {
  const file = await client.files.create({ file: await toFile(data, name), purpose: "batch" });
  assert.deepEqual([file.object, file.purpose, file.status, file.bytes, file.filename], ["file", "batch", "processed", data.length, name]);
  assert.deepEqual(await client.files.retrieve(file.id), file);
  assert.equal(await text(file.id), data.toString());
  return file.id;
}

async function create(fileId, endpoint = ENDPOINT, options = {}) {
  return client.batches.create({ input_file_id: fileId, endpoint, completion_window: "24h", ...options });
}

async function models() {
  const ids = await collect(client.models.list());
  assert.ok(ids.includes(CHAT) && ids.includes(RERANK), `${ids}`);
  assert.equal((await client.models.retrieve(CHAT)).owned_by, "mistralai");
  await rejects(OpenAI.NotFoundError, () => client.models.retrieve("mistral-small-9"));
}

async function complete() {
  const query = JSON.stringify({ query: "parcel", documents: ["A parcel is late.", "A card is declined."] });
  const lines = [line("a", "Say hello."), line("b", "not an object", RERANK), line("c", query, RERANK)];
  const created = await create(await upload("three.jsonl", jsonl(lines)), ENDPOINT, { metadata: { night: "1" } });
  assert.deepEqual(created.metadata, { night: "1" });
  assert.equal(created.expires_at, created.created_at + 86_400);
  const batch = await wait(created.id);
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 3, completed: 2, failed: 1, cancelled: 0, expired: 0 });
  assert.ok(batch.usage.total_tokens > 0);
  const answered = parse(await text(batch.output_file_id));
  assert.deepEqual(answered.map((answer) => answer.custom_id), ["a", "c"]);
  assert.equal(JSON.parse(answered[1].response.body.choices[0].message.content).results[0].index, 0);
  const [refused] = parse(await text(batch.error_file_id));
  assert.deepEqual([refused.custom_id, refused.response.status_code], ["b", 400]);
  await rejects(OpenAI.ConflictError, () => client.batches.cancel(batch.id), "batch_not_cancellable");
  return { batch: batch.id, usage: batch.usage.total_tokens };
}

async function rerank() {
  const body = { model: RERANK, query: "parcel", documents: ["A card is declined.", "A parcel is late."], top_n: 1 };
  const fileId = await upload("rank.jsonl", jsonl([{ custom_id: "r", method: "POST", url: "/v1/rerank", body }]));
  const batch = await wait((await create(fileId, "/v1/rerank")).id);
  const [answer] = parse(await text(batch.output_file_id));
  assert.deepEqual(answer.response.body.results.map((result) => result.index), [1]);
}

async function fail() {
  const batch = await wait((await create(await upload("twice.jsonl", jsonl([line("same", "x"), line("same", "y")])))).id);
  assert.equal(batch.status, "failed");
  assert.deepEqual(batch.errors.data.map((error) => [error.code, error.line]), [["duplicate_custom_id", 2]]);
  assert.equal(batch.output_file_id, null);
}

async function cancel() {
  const total = 5_000;
  const lines = Array.from({ length: total }, (_, number) => line(`n${number}`, `Count to ${number}.`));
  const created = await create(await upload("many.jsonl", jsonl(lines)));
  assert.match((await client.batches.cancel(created.id)).status, /^cancell(ing|ed)$/);
  const batch = await wait(created.id);
  assert.equal(batch.status, "cancelled");
  const counts = batch.request_counts;
  assert.ok(counts.completed + counts.failed <= counts.total && counts.completed < total, JSON.stringify(counts));
  return batch.id;
}

async function lists(known) {
  const batches = await collect(client.batches.list({ limit: 2 }));
  assert.equal(new Set(batches).size, batches.length);
  for (const id of known) assert.ok(batches.includes(id), id);
  const files = await collect(client.files.list({ purpose: "batch", limit: 1 }));
  assert.equal(new Set(files).size, files.length);
}

async function remove() {
  const fileId = await upload("gone.jsonl", jsonl([line("x", "y")]));
  assert.equal((await client.files.delete(fileId)).deleted, true);
  await rejects(OpenAI.NotFoundError, () => client.files.retrieve(fileId));
}

async function errors() {
  await rejects(OpenAI.NotFoundError, () => client.batches.retrieve("batch_unknown"));
  const stranger = new OpenAI({ apiKey: "xln_test_wrong", maxRetries: 0 });
  await rejects(OpenAI.AuthenticationError, () => stranger.batches.list(), "invalid_api_key");
}

const { version } = JSON.parse(await readFile(new URL("./node_modules/openai/package.json", import.meta.url), "utf8"));
await models();
const summary = await complete();
await rerank();
await fail();
const cancelled = await cancel();
await lists([summary.batch, cancelled]);
await remove();
await errors();
process.stdout.write(JSON.stringify({ sdk: `node ${version}`, ...summary, cancelled }));
