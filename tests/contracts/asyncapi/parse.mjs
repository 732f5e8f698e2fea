// Reads an AsyncAPI document from stdin with the official parser; prints what is wrong and exits with 1 where that is an error.
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';

const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'));
const errors = diagnostics.filter((one) => one.severity === 0);
for (const one of errors) console.error(`${one.path.join('.')}: ${one.message}`);
if (errors.length > 0 || document === undefined) process.exit(1);
console.log(JSON.stringify({
  version: document.version(),
  channels: document.channels().all().map((one) => one.address()),
  operations: document.operations().all().map((one) => `${one.action()} ${one.channels().all()[0].address()}`),
  messages: document.messages().all().map((one) => one.name()),
}));
