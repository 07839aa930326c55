// What the clients for JavaScript share. A test says on standard input what is to be asked, one request after
// another, and reads on standard output how each of them ended.
import { createRequire } from "node:module";
import { join } from "node:path";

// What requires the packages in the folder that this variable names.
export const requiring = (variable) => createRequire(join(process.env[variable], "x.js"));

// What the model's answer is to fit, where it is to.
export const cityOf = (z) => z.object({ name: z.string(), inhabitants: z.number().int() });

// Ends when the mock engine at this URL has a request under way.
async function busy(engine) {
  while (!(await (await fetch(new URL("/control", engine))).json()).in_flight) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

// Notes the chunks of a stream in `told`; it is left behind the first one of them where the request `leaves` it.
export async function take(chunks, told, { leaves, controller }) {
  told.chunks = [];
  for await (const chunk of chunks) {
    told.chunks.push(chunk);
    if (leaves) controller.abort();
  }
}

// Asks by `flow(request, told)`, whose request has a `controller`: it aborts when the engine `aborts_at` is busy.
export async function tell(flow) {
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const all = [];
  for (const request of JSON.parse(text)) {
    const told = {};
    const controller = new AbortController();
    if (request.aborts_at) busy(request.aborts_at).then(() => controller.abort());
    try {
      await flow({ ...request, controller }, told);
    } catch (error) {
      const { message, status, code, param, type, requestID, error: body } = error;
      told.error = { message, status, code, param, type, request_id: requestID, body, kinds: [] };
      for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) {
        told.error.kinds.push(kind.name);
      }
    }
    all.push(told);
  }
  console.log(JSON.stringify(all));
}
