// The published AsyncAPI document, read by AsyncAPI's own parser: `make asyncapi`.
const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

const severities = ["error", "warning", "info", "hint"];

new Parser().parse(readFileSync("docs/contract.asyncapi.json", "utf8")).then(({ document, diagnostics }) => {
  for (const { severity, code, path, message } of diagnostics) {
    console.log(severities[severity], code, path.join("."), message);
  }
  if (!document || diagnostics.some(({ severity }) => severity < 2)) process.exit(1);
  const channels = document.channels().all().map((channel) => channel.id());
  console.log(`valid AsyncAPI ${document.version()}: ${channels.join(", ")}`);
});
