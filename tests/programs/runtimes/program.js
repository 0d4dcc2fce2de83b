// Workers, files, HTTP, child processes, and what else goes through libuv's threads.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const fs = require('fs'), http = require('http'), net = require('net'), cp = require('child_process');
const zlib = require('zlib'), crypto = require('crypto'), stream = require('stream/promises');
const { once } = require('events');

const upTo = n => [...Array(n).keys()];

async function workers() {
  const shared = new SharedArrayBuffer(16), view = new Int32Array(shared);
  const done = upTo(6).map(n => new Promise((resolve, reject) => {
    const worker = new Worker(__filename, { workerData: { n, shared } });
    worker.on('message', resolve).on('error', reject);
  }));
  setTimeout(() => { Atomics.store(view, 1, 1); Atomics.notify(view, 1); }, 20);
  console.log(JSON.stringify(await Promise.all(done)), view[0]);
}

function work() {
  const view = new Int32Array(workerData.shared);
  for (let i = 0; i < 1000; i++) Atomics.add(view, 0, 1);
  if (workerData.n === 3) Atomics.wait(view, 1, 0);
  let x = workerData.n;
  for (let i = 0; i < 200000; i++) x = (x * 1103515245 + 12345) % 2147483648;
  parentPort.postMessage({ n: workerData.n, x });
}

async function files() {
  fs.mkdirSync('d/e', { recursive: true });
  await Promise.all(upTo(30).map(i => fs.promises.writeFile(`d/e/f${i}`, 'x'.repeat(i * 500))));
  console.log((await fs.promises.readdir('d/e')).sort().join(' '));
  const states = await Promise.all(upTo(30).map(i => fs.promises.stat(`d/e/f${i}`)));
  console.log(states.reduce((sum, state) => sum + state.size, 0));
  await stream.pipeline(fs.createReadStream(__filename), zlib.createGzip(), fs.createWriteStream('packed'));
  console.log(zlib.gunzipSync(fs.readFileSync('packed')).equals(fs.readFileSync(__filename)));
  fs.copyFileSync('d/e/f9', 'copy');
  fs.renameSync('copy', 'moved');
  console.log(fs.statSync('moved').size, fs.existsSync('copy'));
  const watcher = fs.watch('d'), event = once(watcher, 'change');
  fs.writeFileSync('d/watched', 'x');
  console.log((await event)[1]);
  watcher.close();
  try { fs.readFileSync('none'); } catch (error) { console.log(error.message); }
}

async function web() {
  const server = http.createServer((request, response) => {
    const hash = crypto.createHash('sha256');
    request.on('data', data => hash.update(data));
    request.on('end', () => { response.setHeader('X-Path', request.url); response.end(hash.digest('hex')); });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  const ask = async (path, body) => {
    const request = http.request({ port, host: '127.0.0.1', path, method: 'POST' }).end(body);
    const [response] = await once(request, 'response');
    let text = '';
    for await (const part of response) text += part;
    return `${response.statusCode} ${response.headers['x-path']} ${text.slice(0, 16)}`;
  };
  for (const line of await Promise.all(upTo(12).map(i => ask('/' + i, 'b'.repeat(i * 20000))))) console.log(line);
  server.close();
  server.closeAllConnections?.();
}

async function children() {
  console.log(cp.execSync('echo from a shell').toString().trim());
  const shell = cp.spawnSync('sh', ['-c', 'cat; echo err >&2; exit 3'], { input: 'input' });
  console.log(shell.status, shell.stdout.toString(), shell.stderr.toString().trim());
  const sleep = cp.spawn('sleep', ['1000']);
  sleep.kill('SIGTERM');
  console.log((await once(sleep, 'exit')).join());
  const forked = cp.fork(__filename, ['child']);
  const ended = once(forked, 'exit');
  forked.send({ list: [1, 2, 3] });
  console.log(JSON.stringify((await once(forked, 'message'))[0]));
  console.log((await ended).join());
  const upper = cp.spawn('tr', ['a-z', 'A-Z']);
  upper.stdin.end('through tr');
  let text = '';
  for await (const part of upper.stdout) text += part;
  console.log(text);
  console.log(await new Promise(resolve => cp.exec('exit 6', error => resolve(error.code))));
}

async function others() {
  const key = await new Promise(resolve => crypto.pbkdf2('p', 's', 1000, 16, 'sha512', (_, key) => resolve(key)));
  console.log(key.toString('hex'));
  const echo = net.createServer(socket => socket.pipe(socket)).listen('socket');
  await once(echo, 'listening');
  const client = net.connect('socket');
  client.write('unix');
  console.log((await once(client, 'data')).toString());
  client.end();
  echo.close();
  const signal = once(process, 'SIGUSR2');
  process.kill(process.pid, 'SIGUSR2');
  console.log((await signal)[0]);
  const kept = [];
  for (let i = 0; i < 200; i++) {
    kept.push(new Array(10000).fill(i));
    if (kept.length > 20) kept.shift();
  }
  console.log(kept.length, kept[3][5]);
  try { (function endless() { endless(); })(); } catch (error) { console.log(error.constructor.name); }
  const add = 'AGFzbQEAAAABBwFgAn9/AX8DAgEABwcBA2FkZAAACgkBBwAgACABags=';
  console.log((await WebAssembly.instantiate(Buffer.from(add, 'base64'))).instance.exports.add(40, 2));
}

if (!isMainThread) {
  work();
} else if (process.argv[2] === 'child') {
  process.on('message', ({ list }) => {
    process.send({ sum: list.reduce((a, b) => a + b) });
    process.disconnect();
  });
} else {
  (async () => {
    for (const part of [workers, files, web, children, others]) await part();
    process.on('exit', code => console.log('exit', code));
    process.exitCode = 4;
  })();
}
