// Checks a ServiceMonitor (JSON on stdin) against the Prometheus Operator's types: values by its schema, names by its declarations,
// as the schema lets any other name pass. Prints what is wrong, one line each. DEPLOY_JS: where npm has put the package.
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const FOLDER = path.join(process.env.DEPLOY_JS, "node_modules/@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1");
const given = JSON.parse(readFileSync(0, "utf8"));
const { ServiceMonitor } = await import(pathToFileURL(path.join(FOLDER, "ServiceMonitor.js")));

try {
  new ServiceMonitor(given).validate();
} catch (error) {
  console.log(error.message);
}

function declared(file) {
  const text = readFileSync(path.join(FOLDER, file), "utf8");
  const names = new Set([...text.matchAll(/^ {4}"([A-Za-z]+)"\??:/gm)].map((match) => match[1]));
  for (const [, base] of text.matchAll(/^export interface \w+ extends (\w+)/gm)) {
    const source = text.match(new RegExp(`import \\{ ${base} \\} from "\\./(\\w+)\\.js"`));
    for (const name of declared(`${source[1]}.d.ts`)) names.add(name);
  }
  return names;
}

function tellUnknown(value, name) {
  const names = declared(`${name}.d.ts`);
  for (const key of Object.keys(value)) if (!names.has(key)) console.log(`${name} has no ${key}`);
}

tellUnknown(given.spec, "ServiceMonitorSpec");
for (const endpoint of given.spec.endpoints) tellUnknown(endpoint, "Endpoint");
