// An SMTP server that is not ours, for AUTH. What it is told stands in its first argument as JSON:
// { key, certificate, methods, passwords, tokens, challenge }. It writes a line of JSON once it
// listens, { port }, one for each attempt to authenticate, and one for each message. The end of its
// input ends it.

import { SMTPServer } from "smtp-server";

const told = JSON.parse(process.argv[2]);

const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const server = new SMTPServer({
  name: "mail.test",
  key: told.key,
  cert: told.certificate,
  authMethods: told.methods,
  onAuth({ method, username, password, accessToken }, session, callback) {
    const right = accessToken
      ? accessToken === told.tokens[username]
      : password === told.passwords[username];
    say({ auth: method, username, right, secure: session.secure });
    callback(null, right ? { user: username } : { data: told.challenge });
  },
  onData(stream, session, callback) {
    const chunks = [];
    stream.on("data", (chunk) => chunks.push(chunk));
    stream.on("end", () => {
      say({ message: Buffer.concat(chunks).toString("base64"), user: session.user });
      callback(null, "queued as S00001");
    });
  },
});

server.on("error", () => {}); // of a client that left, which is the client's business
server.listen(0, "127.0.0.1", () => say({ port: server.server.address().port }));
process.stdin.resume();
process.stdin.on("end", () => process.exit());
