// Reads messages on stdin, one a line in base64, and answers each with a line of JSON: what two
// parsers made of it. They run in one process for all tests, because starting Node takes longer
// than judging a hundred messages.

import { createInterface } from "node:readline";
import { simpleParser } from "mailparser";
import PostalMime from "postal-mime";

const base64 = (content) => Buffer.from(content ?? "").toString("base64");

const people = (list) => (list ?? []).map(({ name, address }) => [name ?? "", address ?? ""]);

async function mailparser(octets) {
  const read = await simpleParser(octets, {
    keepCidLinks: true,
    skipHtmlToText: true,
    skipImageLinks: true,
    skipTextLinks: true,
    skipTextToHtml: true,
  });
  return {
    subject: read.subject ?? null,
    from: people(read.from?.value),
    to: people(read.to?.value),
    cc: people(read.cc?.value),
    text: read.text || null,
    html: read.html || null,
    attachments: read.attachments.map((part) => ({
      filename: part.filename ?? null,
      content_type: part.contentType,
      octets: base64(part.content),
    })),
  };
}

async function postalMime(octets) {
  const read = await PostalMime.parse(octets, { forceRfc822Attachments: true });
  return {
    subject: read.subject ?? null,
    from: people(read.from && [read.from]),
    to: people(read.to),
    cc: people(read.cc),
    text: read.text || null,
    html: read.html || null,
    attachments: read.attachments.map((part) => ({
      filename: part.filename ?? null,
      content_type: part.mimeType,
      octets: base64(part.content),
    })),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const octets = Buffer.from(line, "base64");
  const read = { mailparser: await mailparser(octets), "postal-mime": await postalMime(octets) };
  process.stdout.write(`${JSON.stringify(read)}\n`);
}
