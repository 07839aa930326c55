// What a request looks like as a command of the shell and as a program in Python. Pure: text in, text out.
//
// Never holds a key: the code reads one from the environment variable GATEWAY_API_KEY.

const KEY_VARIABLE = "GATEWAY_API_KEY";

// The arguments of `chat.completions.create` in openai's client; whatever else a body has goes into `extra_body`.
const CLIENT_ARGUMENTS = new Set([
  "model",
  "messages",
  "temperature",
  "top_p",
  "max_tokens",
  "max_completion_tokens",
  "seed",
  "stop",
  "stream",
  "stream_options",
  "response_format",
  "tools",
  "tool_choice",
  "n",
  "presence_penalty",
  "frequency_penalty",
  "logit_bias",
  "logprobs",
  "top_logprobs",
  "user",
]);
const NARROW = 72; // characters that a list or an object may take on one line of Python

/** `text` as one word of a POSIX shell, whatever is in it. */
export function shellQuoted(text) {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * A curl command that sends `body`, as JSON, to `url`. The body is a here-document with a quoted word: a shell leaves
 * everything in it as it is, and it may be of any size. `withKey`: whether the gateway asks for a key.
 */
export function curlOf(url, body, withKey) {
  const lines = [`curl ${body.stream ? "-N " : ""}${shellQuoted(url)} \\`, "  -H 'Content-Type: application/json' \\"];
  if (withKey) lines.push(`  -H "Authorization: Bearer $${KEY_VARIABLE}" \\`);
  lines.push("  --data-binary @- <<'JSON'", JSON.stringify(body, null, 2), "JSON");
  return `${lines.join("\n")}\n`;
}

/** A value of JSON as an expression of Python. `indent`: how far the line it stands on is indented. */
export function pythonOf(value, indent = 0) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return JSON.stringify(value); // JSON's escapes are all Python's, too
  if (typeof value === "number") return String(value);
  const isList = Array.isArray(value);
  const [open, close] = isList ? "[]" : "{}";
  const parts = (inner) =>
    isList
      ? value.map((item) => pythonOf(item, inner))
      : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonOf(item, inner)}`);
  const line = `${open}${parts(0).join(", ")}${close}`;
  if (line.length + indent <= NARROW && !line.includes("\n")) return line;
  const inner = indent + 4;
  const rows = parts(inner).map((part) => `${" ".repeat(inner)}${part},\n`);
  return `${open}\n${rows.join("")}${" ".repeat(indent)}${close}`;
}

/** A program for openai's client that sends the chat `body` to the gateway at `origin`, and prints the answer. */
export function pythonChat(origin, body, withKey) {
  const known = Object.entries(body).filter(([name]) => CLIENT_ARGUMENTS.has(name));
  const others = Object.entries(body).filter(([name]) => !CLIENT_ARGUMENTS.has(name));
  const rows = known.map(([name, value]) => `    ${name}=${pythonOf(value, 4)},\n`);
  if (others.length) rows.push(`    extra_body=${pythonOf(Object.fromEntries(others), 4)},\n`);
  const head = withKey ? "import os\n\nfrom openai import OpenAI\n" : "from openai import OpenAI\n";
  const key = withKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  const call = `client.chat.completions.create(\n${rows.join("")})\n`;
  const rest = body.stream
    ? `stream = ${call}for chunk in stream:\n    if chunk.choices:\n` +
      '        print(chunk.choices[0].delta.content or "", end="", flush=True)\nprint()\n'
    : `completion = ${call}print(completion.choices[0].message.content)\n`;
  return `${head}\nclient = OpenAI(base_url=${pythonOf(`${origin}/v1`)}, api_key=${key})\n\n${rest}`;
}

/** A program of Python alone that posts `body` to `url`, and prints what is answered. */
export function pythonPost(url, body, withKey) {
  const key = withKey ? `, "Authorization": "Bearer " + os.environ["${KEY_VARIABLE}"]` : "";
  return (
    `import json\n${withKey ? "import os\n" : ""}import urllib.request\n\n` +
    `body = ${pythonOf(body)}\nrequest = urllib.request.Request(\n    ${pythonOf(url)},\n    json.dumps(body).encode(),\n` +
    `    {"Content-Type": "application/json"${key}},\n)\n` +
    "with urllib.request.urlopen(request) as answer:\n    print(json.dumps(json.load(answer), indent=2))\n"
  );
}
