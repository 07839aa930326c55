// Asks with the anthropic package for JavaScript, as tests/process/test_anthropic_js.py says on standard input, and tells on
// standard output how each request ended. ANTHROPIC_JS is the folder in which the package was installed.
import { createRequire } from "node:module";
import { join } from "node:path";

const { Anthropic } = createRequire(join(process.env.ANTHROPIC_JS, "x.js"))("@anthropic-ai/sdk");

async function streamed(client, options, leaves) {
  const stream = client.messages.stream(options);
  const events = [];
  for await (const event of stream) {
    events.push(event.type);
    if (leaves && event.type === "content_block_delta") break; // which aborts it
  }
  return { events, message: leaves ? undefined : await stream.finalMessage() };
}

async function ask({ base_url: baseURL, key: apiKey, how, options }) {
  const told = {};
  try {
    const client = new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
    if (how === "stream") Object.assign(told, await streamed(client, options, false));
    else if (how === "leave") Object.assign(told, await streamed(client, options, true));
    else if (how === "count") told.tokens = (await client.messages.countTokens(options)).input_tokens;
    else told.message = await client.messages.create(options);
  } catch (error) {
    const { message, status, requestID, error: body } = error;
    told.error = { message, status, request_id: requestID, body, kinds: [] };
    for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) told.error.kinds.push(kind.name);
  }
  return told;
}

let text = "";
for await (const piece of process.stdin) text += piece;
const told = [];
for (const request of JSON.parse(text)) told.push(await ask(request));
console.log(JSON.stringify(told));
