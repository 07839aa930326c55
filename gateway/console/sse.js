// Server-sent events out of pieces of text, as the HTML standard parses them. Asks nobody: the stream is given.
//
//   for await (const event of eventsOf(response.body)) …
//   const parser = new SseParser();
//   for (const event of parser.feed(text)) …   // {event, data, id}
//
// What has not ended with a blank line is no event and is dropped with the parser.

/** An event larger than this is refused: a feed that never ends its line must not fill the memory. */
export const MAX_EVENT_CHARS = 32 * 1024 * 1024;

export class SseParser {
  constructor() {
    this._rest = ""; // the line that has not ended
    this._data = [];
    this._chars = 0;
    this._event = "";
    this._id = "";
    this._started = false;
  }

  /** The events that end within `text`; throws RangeError for one that is too large. */
  feed(text) {
    let rest = this._rest + text;
    if (!this._started && rest !== "") {
      this._started = true;
      if (rest.startsWith("\uFEFF")) rest = rest.slice(1);
    }
    const events = [];
    // A CR at the very end may be half of a CR LF: it waits for what follows.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    this._rest = lines.pop();
    for (const line of lines) {
      const event = this._line(line);
      if (event) events.push(event);
    }
    if (this._chars + this._rest.length > MAX_EVENT_CHARS) throw new RangeError("an event of the stream is too large");
    return events;
  }

  _line(line) {
    if (line === "") return this._dispatch();
    if (line.startsWith(":")) return null;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") {
      this._data.push(value);
      this._chars += value.length;
    } else if (field === "event") this._event = value;
    else if (field === "id" && !value.includes("\0")) this._id = value;
    return null;
  }

  _dispatch() {
    const event = this._data.length ? { event: this._event || "message", data: this._data.join("\n"), id: this._id } : null;
    this._data = [];
    this._chars = 0;
    this._event = "";
    return event;
  }
}

/** The events of an answer's body until it ends; leaving the loop closes it. Throws as its reader and the parser do. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* parser.feed(decoder.decode(value, { stream: true }));
    }
    yield* parser.feed(`${decoder.decode()}\n\n`); // an end without a blank line, as some engines leave it
  } finally {
    reader.cancel().catch(() => {});
  }
}
