// Reads {schema, right: [...], wrong: [...]} from stdin; exits with 1 unless the schema, compiled in strict mode, takes all that is right and nothing that is wrong.
import { readFileSync } from 'node:fs';
import Ajv2020 from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';

const { schema, right, wrong } = JSON.parse(readFileSync(0, 'utf8'));
const ajv = new Ajv2020({ strict: true, allErrors: true });
addFormats(ajv);
ajv.addFormat('decimal', /^-?\d+(\.\d+)?$/);
const takes = ajv.compile(schema);
const refused = right.filter((one) => !takes(one));
const taken = wrong.filter((one) => takes(one));
if (refused.length > 0 || taken.length > 0) {
  console.error(JSON.stringify({ refused, taken, errors: takes.errors }));
  process.exit(1);
}
