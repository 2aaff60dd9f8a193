// The process of Nodemailer: reads tasks from its input, a line of JSON each, and does them with a
// pool, as benchmarks/worker.py does. Its argument is the folder in which npm has put Nodemailer.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { performance } from "node:perf_hooks";

const nodemailer = createRequire(`${process.argv[2]}/`)("nodemailer");

const text =
  "Dear reader,\n\n" + "this is a line of the newsletter, of an ordinary length.\n".repeat(8);
const html =
  "<html><body><p>Dear reader,</p>" + "<p>this is a <b>line</b> of html.</p>".repeat(16) + "</body>";

function message(task, number) {
  const each = (which) => `Reader ${number} <reader${number}${which}@example.org>`;
  const to = task.recipients === 1
    ? [each("")]
    : Array.from({ length: task.recipients }, (_, which) => each(`.${which}`));
  const made = { from: "Ada <ada@example.com>", to, subject: `News ${number}`, text, html };
  if (task.size) made.attachments = [{ filename: "a.bin", content: Buffer.alloc(task.size, 0x93) }];
  if (task.path) made.attachments = [{ filename: "a.bin", path: task.path }];
  return made;
}

function vmPeak() {
  return process.resourceUsage().maxRSS / 1024;
}

async function perform(task) {
  const transport = nodemailer.createTransport({
    pool: true, host: "127.0.0.1", port: task.port, secure: Boolean(task.ca_file),
    auth: task.ca_file ? { user: "ada", pass: "secret" } : undefined,
    tls: { rejectUnauthorized: false },
    maxConnections: task.sessions, maxMessages: Infinity,
  });
  for (let number = 0; number < task.warm; number++)
    await transport.sendMail(message(task, number));
  const resident = process.memoryUsage.rss() / 1048576;
  const began = performance.now(), before = process.cpuUsage();
  if (task.sessions === 1)
    for (let number = 0; number < task.count; number++)
      await transport.sendMail(message(task, number));
  else
    await Promise.all(Array.from({ length: task.count },
      (_, number) => transport.sendMail(message(task, number))));
  const seconds = (performance.now() - began) / 1e3, spent = process.cpuUsage(before);
  transport.close();
  const extra = Math.max(0, vmPeak() - resident);
  return { seconds, cpu: (spent.user + spent.system) / 1e6, more: { extra } };
}

for await (const line of createInterface({ input: process.stdin }))
  process.stdout.write(JSON.stringify(await perform(JSON.parse(line))) + "\n");
