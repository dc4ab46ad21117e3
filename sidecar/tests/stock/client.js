// A client as the grpc-js documentation shows it, with its default options: commands on stdin, answers on stdout.
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const readline = require("node:readline");

const [, , target, protos, ...options] = process.argv;
const definition = loader.loadSync("synod/v1/log.proto", { includeDirs: [protos], keepCase: true, longs: String });
const { Log } = grpc.loadPackageDefinition(definition).synod.v1;
const log = new Log(target, grpc.credentials.createInsecure());
const name = (code) => Object.keys(grpc.status).find((name) => grpc.status[name] === code);
const deadline = () => new Date(Date.now() + 30_000);

function append(text, done) {
  const request = { entries: [Buffer.from(text)], key: { key: Buffer.from(text) } };
  log.Append(request, { deadline: deadline() }, (error, answer) => {
    if (!error) console.log("appended", answer.first_index);
    // Under its key it may be tried again.
    else if ([grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED].includes(error.code)) return append(text, done);
    else console.log("failed", name(error.code), error.details);
    done();
  });
}

function refused(done) {
  const request = { entries: [Buffer.from("never")], expected_index: 1_000_000 };
  log.Append(request, { deadline: deadline() }, (error) => {
    const details = error?.metadata.get("grpc-status-details-bin")[0] ?? Buffer.alloc(0);
    // The reason is the first text of the ErrorInfo.
    const reason = options.includes("--details") ? /[A-Z][A-Z_]{3,}/.exec(details.toString("latin1"))?.[0] ?? "" : "";
    console.log("refused", name(error?.code), reason);
    done();
  });
}

function subscribe(begin) {
  const pages = log.Subscribe({ from: begin });
  // What carries no entries says something else of the stream.
  pages.on("data", ({ entries = [] }) => {
    for (const { index, payload } of entries) console.log("entry", index, payload.toString());
  });
  pages.on("error", (error) => console.log("failed", name(error.code), error.details));
}

const lines = [];
let busy = false;
function next() {
  if (busy || lines.length === 0) return;
  const [command, rest] = lines.shift().split(/ (.*)/);
  const done = () => { busy = false; next(); };
  busy = true;
  if (command === "append") append(rest, done);
  else if (command === "refused") refused(done);
  else { subscribe(rest); done(); }
}
readline.createInterface({ input: process.stdin }).on("line", (line) => { lines.push(line); next(); })
  .on("close", () => process.exit(0));
