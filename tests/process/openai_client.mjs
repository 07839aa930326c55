// Asks with the openai package for JavaScript, as tests/process/test_openai_js.py says on standard input, and tells on standard
// output how each request ended. OPENAI_JS is the folder in which the package was installed.
import { createRequire } from "node:module";
import { join } from "node:path";

const { OpenAI } = createRequire(join(process.env.OPENAI_JS, "x.js"))("openai");

async function ask({ base_url: baseURL, key: apiKey, options, retries: maxRetries }) {
  const told = { requests: 0 };
  const counted = (...request) => {
    told.requests += 1;
    return fetch(...request);
  };
  try {
    const client = new OpenAI({ baseURL, apiKey, maxRetries, timeout: 20_000, fetch: counted });
    const answer = await client.chat.completions.create(options);
    if (options.stream) for await (const chunk of answer) told.chunk = chunk;
    else told.answer = answer.choices[0].message.content;
  } catch (error) {
    const { message, status, code, param, type, requestID } = error;
    told.error = { message, status, code, param, type, request_id: requestID, kinds: [] };
    for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) told.error.kinds.push(kind.name);
  }
  return told;
}

let text = "";
for await (const piece of process.stdin) text += piece;
const told = [];
for (const request of JSON.parse(text)) told.push(await ask(request));
console.log(JSON.stringify(told));
