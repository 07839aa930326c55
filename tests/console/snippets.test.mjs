// The snippets are really run: curl by sh and bash, the programs by Python, whatever the prompt is made of.
import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { curlOf, pythonChat, pythonOf, pythonPost, shellQuoted } from "../../gateway/console/snippets.js";

const run = promisify(execFile);
const NASTY = [
  "plain",
  'it\'s "quoted" `backticks` $HOME ${HOME} $(id) !! !1',
  "back\\slash \\n \\u0041 \\\\ ends with \\",
  "two\nlines\r\nand\ttabs\u0000 and nul\u0007\u001b[31m\u007f",
  "JSON\nEOF\n'JSON'\nJSON",
  "emoji 👩‍👩‍👧 ünï漢字 \u2028\u2029 \ud83d alone \u202e",
  "{curly} %s %(name)s {{x}} # comment '''triple''' \"\"\"triple\"\"\"",
  "@file -n --data x",
  "x".repeat(300_000),
];
const bodies = NASTY.map((content, index) => ({
  model: "13b",
  messages: [
    { role: "system", content: "Be 'brief'." },
    { role: "user", content },
  ],
  temperature: 0.25,
  max_tokens: 1e21,
  seed: -7,
  stop: ["\n", "it's"],
  stream: index % 2 === 0,
  "odd'name": { a: [true, false, null, [], {}], 'b"': content.slice(0, 50) },
}));

let server, origin, received, folder;
before(async () => {
  folder = mkdtempSync(join(tmpdir(), "snippets-"));
  server = createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      received = { headers: request.headers, url: request.url, text: Buffer.concat(parts).toString() };
      response.end('{"ok": true}');
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  origin = `http://127.0.0.1:${server.address().port}`;
  // Stands for openai's client, and says what it was called with.
  writeFileSync(
    join(folder, "openai.py"),
    `
import json
class OpenAI:
    def __init__(self, base_url, api_key):
        self.chat = self.completions = self
        self.said = {"base_url": base_url, "api_key": api_key}
    def create(self, **arguments):
        print(json.dumps({**self.said, "arguments": arguments}))
        raise SystemExit
`,
  );
});
after(() => {
  server.close();
  rmSync(folder, { recursive: true });
});

const sameJson = (actual, expected) => assert.deepEqual(actual, JSON.parse(JSON.stringify(expected)));
const environment = { ...process.env, GATEWAY_API_KEY: "a$b'c" };

for (const shell of ["bash", "sh"]) {
  test(`curl as ${shell} runs it sends every prompt as it is`, async () => {
    for (const body of bodies) {
      writeFileSync(join(folder, "snippet.sh"), curlOf(`${origin}/v1/chat/completions`, body, true));
      await run(shell, [join(folder, "snippet.sh")], { env: environment });
      sameJson(JSON.parse(received.text), body);
      assert.equal(received.headers.authorization, "Bearer a$b'c");
      assert.equal(received.headers["content-type"], "application/json");
      assert.equal(received.url, "/v1/chat/completions");
    }
  });
}

test("curl shows no key where the gateway asks for none", async () => {
  const command = curlOf(`${origin}/x`, { model: "a" }, false);
  await run("bash", ["-c", command]);
  assert.equal(received.headers.authorization, undefined);
});

test("an address with what a shell would read stays one word", () => {
  for (const text of ["http://h/?a=1&b=2", "a b", "it's", "$x", "", "~", "*"]) {
    const said = execFileSync("bash", ["-c", `printf '%s|' ${shellQuoted(text)}`]).toString();
    assert.equal(said, `${text}|`);
  }
});

test("Python calls openai's client with every prompt as it is", async () => {
  for (const body of bodies) {
    writeFileSync(join(folder, "snippet.py"), pythonChat(origin, body, true));
    const { stdout } = await run("python3", [join(folder, "snippet.py")], { env: environment, maxBuffer: 1e8 });
    const said = JSON.parse(stdout);
    const { extra_body: extra, ...known } = said.arguments;
    sameJson({ ...known, ...extra }, body);
    assert.deepEqual(Object.keys(extra), ["odd'name"]);
    assert.equal(said.base_url, `${origin}/v1`);
    assert.equal(said.api_key, "a$b'c");
  }
});

test("Python posts any body as it is", async () => {
  for (const body of bodies) {
    writeFileSync(join(folder, "post.py"), pythonPost(`${origin}/api/v1/inference`, body, true));
    await run("python3", [join(folder, "post.py")], { env: environment, maxBuffer: 1e8 });
    sameJson(JSON.parse(received.text), body);
    assert.equal(received.headers.authorization, "Bearer a$b'c");
  }
});

test("Python is written in short lines, as people write it", () => {
  assert.equal(pythonOf([{ role: "user", content: "Hi" }]), '[{"role": "user", "content": "Hi"}]');
  assert.equal(pythonOf({ a: true, b: null }), '{"a": True, "b": None}');
  const long = pythonOf({ text: "x".repeat(80), list: [] });
  assert.equal(long, `{\n    "text": "${"x".repeat(80)}",\n    "list": [],\n}`);
});
