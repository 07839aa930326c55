// Asks with the openai package for JavaScript, which is in the folder OPENAI_JS, as its test says.
import { cityOf, requiring, take, tell } from "./client.mjs";

const require = requiring("OPENAI_JS");
const { OpenAI } = require("openai");

// zod, and what the package makes of it, for the flows that need it.
function fitting() {
  return { City: cityOf(require("zod")), ...require("openai/helpers/zod") };
}

const flows = {
  async chat(client, asked, told, request) {
    const answer = await client.chat.completions.create(asked, { signal: request.controller.signal });
    if (asked.stream) await take(answer, told, request);
    else told.answer = answer;
  },
  async rounds(client, asked, told) {
    const run = ({ function: { name, parameters } }) => ({
      type: "function",
      function: { name, parameters, parse: JSON.parse, function: () => `of ${name}` },
    });
    const runner = client.chat.completions.runTools({ ...asked, tools: asked.tools.map(run) });
    told.said = await runner.finalContent();
  },
  async fits(client, asked, told) {
    const { City, zodResponseFormat } = fitting();
    const wanted = { ...asked, response_format: zodResponseFormat(City, "City") };
    told.whole = (await client.chat.completions.parse(wanted)).choices[0].message.parsed;
    const stream = client.chat.completions.stream(wanted);
    told.streamed = (await stream.finalChatCompletion()).choices[0].message.parsed;
  },
  async calls(client, asked, told) {
    const { City, zodFunction } = fitting();
    const answer = await client.chat.completions.parse({
      ...asked,
      tools: [zodFunction({ name: "City", parameters: City })],
    });
    told.called = answer.choices[0].message.tool_calls[0].function.parsed_arguments;
  },
  async embeddings(client, asked, told) {
    told.answer = await client.embeddings.create(asked);
  },
  async response(client, asked, told, request) {
    const answer = await client.responses.create(asked, { signal: request.controller.signal });
    if (asked.stream) await take(answer, told, request);
    else told.answer = answer;
  },
  async response_rounds(client, { stream, ...asked }, told) {
    const input = [...asked.input];
    for (;;) {
      const wanted = { ...asked, input };
      const response = stream
        ? await client.responses.stream(wanted).finalResponse()
        : await client.responses.create(wanted);
      const calls = response.output.filter((item) => item.type === "function_call");
      told.said = response.output_text;
      if (calls.length === 0) return;
      const result = ({ call_id, name }) => ({ type: "function_call_output", call_id, output: `of ${name}` });
      input.push(...response.output, ...calls.map(result));
    }
  },
  async response_fits(client, asked, told) {
    const { City, zodTextFormat } = fitting();
    const wanted = { ...asked, text: { format: zodTextFormat(City, "City") } };
    told.whole = (await client.responses.parse(wanted)).output_parsed;
    told.streamed = (await client.responses.stream(wanted).finalResponse()).output_parsed;
  },
};

await tell(async (request, told) => {
  const { base_url: baseURL, key: apiKey, name = null, retries: maxRetries = 0 } = request;
  told.requests = 0;
  const counted = (...asked) => {
    told.requests += 1;
    return fetch(...asked);
  };
  const defaultHeaders = { "X-Request-ID": name };
  const client = new OpenAI({ baseURL, apiKey, maxRetries, timeout: 20_000, fetch: counted, defaultHeaders });
  await flows[request.how](client, request.options, told, request);
});
