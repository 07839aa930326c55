// Asks with the anthropic package for JavaScript, which is in the folder ANTHROPIC_JS, as its test says.
import { cityOf, requiring, take, tell } from "./client.mjs";

const require = requiring("ANTHROPIC_JS");
const { Anthropic } = require("@anthropic-ai/sdk");

const flows = {
  async create(client, asked, told, { controller }) {
    told.message = await client.messages.create(asked, { signal: controller.signal });
  },
  async stream(client, asked, told, request) {
    const stream = client.messages.stream(asked, { signal: request.controller.signal });
    await take(stream, told, request);
    told.message = await stream.finalMessage();
  },
  async rounds(client, { stream, ...asked }, told) {
    const messages = [...asked.messages];
    for (;;) {
      const wanted = { ...asked, messages };
      const message = stream
        ? await client.messages.stream(wanted).finalMessage()
        : await client.messages.create(wanted);
      const calls = message.content.filter((block) => block.type === "tool_use");
      told.said = message.content.at(-1).text;
      if (calls.length === 0) return;
      const results = calls.map(({ id, name }) => ({ type: "tool_result", tool_use_id: id, content: `of ${name}` }));
      messages.push({ role: "assistant", content: message.content }, { role: "user", content: results });
    }
  },
  async runs(client, asked, told) {
    const tools = asked.tools.map((tool) => ({ ...tool, run: () => `of ${tool.name}`, parse: (given) => given }));
    told.said = (await client.beta.messages.toolRunner({ ...asked, tools })).content.at(-1).text;
  },
  async fits(client, asked, told) {
    const { zodOutputFormat } = require("@anthropic-ai/sdk/helpers/zod");
    const wanted = { ...asked, output_config: { format: zodOutputFormat(cityOf(require("zod/v4"))) } };
    told.whole = (await client.messages.parse(wanted)).parsed_output;
    told.streamed = (await client.messages.stream(wanted).finalMessage()).parsed_output;
  },
  async count(client, asked, told) {
    told.tokens = (await client.messages.countTokens(asked)).input_tokens;
  },
};

await tell(async (request, told) => {
  const { base_url: baseURL, key: apiKey, name } = request;
  const defaultHeaders = { "X-Request-ID": name };
  const client = new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 20_000, defaultHeaders });
  await flows[request.how](client, request.options, told, request);
});
