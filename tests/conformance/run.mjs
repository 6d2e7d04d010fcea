// Runs the HTTP caching suite (npm: http-cache-tests) against one node and against a fleet of three.
//
//   node tests/conformance/run.mjs [--program target/debug/groupcache-proxy] [--only TEST-ID[,TEST-ID...]]
//
// Each run of the suite is a thread of its own, because the suite keeps its results in global variables:
//
//   this process ── origin of the suite ◄── node            ◄── run "node"
//                                       ◄── three nodes     ◄── runs "fleet, owner asked first", "... second", "... third"
//
// A fleet's nodes are asked in turn, beginning so that each request of a test meets the key's owner in one of the runs.
// --only runs single tests and prints what was sent and received; it writes no report and judges nothing.

import { spawn, spawnSync } from 'node:child_process'
import { createServer as createHttpServer } from 'node:http'
import { createServer } from 'node:net'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

import { exceptionsOf, judge, report } from './report.mjs'
import { kindOf, suites as suitesOf } from './suite.mjs'

const SUITE = 'http-cache-tests@0.4.5'
// The HTTP client that the suite is written for.
const CLIENT = 'node-fetch@2.7.0'

const HERE = dirname(fileURLToPath(import.meta.url))
const ROOT = resolve(HERE, '../..')
const WORK = join(ROOT, 'target/conformance')
const MODULES = join(WORK, 'suite/node_modules')

const READY_MILLISECONDS = 20_000
const REQUEST_MILLISECONDS = 20_000
const RUN_MILLISECONDS = 150_000
// Tests that run at once, and requests of one run that are under way at once: more would make answers late, and Age says so.
const TESTS_AT_ONCE = 100
const REQUESTS_AT_ONCE = 4
const STOP_MILLISECONDS = 8_000

const suite = path => import(pathToFileURL(join(MODULES, path)))
const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds))

async function main (nodes) {
  const { program, only } = options()
  install()
  const origin = await startOrigin()
  const single = await startNodes(nodes, program, origin, 'node', 1)
  const fleet = await startNodes(nodes, program, origin, 'fleet', 3)
  const runs = [{ name: 'node', urls: single, shift: 0 }]
  for (const [shift, place] of ['first', 'second', 'third'].entries()) {
    runs.push({ name: `fleet, owner asked ${place}`, urls: fleet, shift })
  }
  const known = await suitesOf(suite)
  if (only) {
    for (const run of runs.slice(0, 2)) {
      for (const id of only) {
        console.log(`\n######## ${run.name}: ${id}`)
        const results = await inThread({ ...run, only: [id], dump: true })
        console.log(JSON.stringify(results))
      }
    }
    return 0
  }
  const exceptions = exceptionsOf(readFileSync(join(HERE, 'exceptions.toml'), 'utf8'))
  const results = await Promise.all(runs.map(run => inThread(run)))
  await tryAgain(runs, results, known, exceptions)
  for (const node of nodes) node.check()
  const named = runs.map((run, at) => ({ name: run.name, results: results[at] }))
  writeFileSync(join(WORK, 'results.json'), JSON.stringify(named, null, 2))
  const verdict = judge(known, named, exceptions)
  writeFileSync(join(HERE, 'README.md'), report(SUITE, known, verdict))
  console.log(verdict.text)
  return verdict.failures === 0 ? 0 : 1
}

/// Some tests count seconds, which a busy machine does not keep: what failed is tried once more, with nothing beside it.
async function tryAgain (runs, results, suites, exceptions) {
  const judged = suites.flatMap(one => one.tests).filter(test => kindOf(test) !== 'check' && !exceptions.has(test.id))
  for (const [at, run] of runs.entries()) {
    const only = judged.map(test => test.id).filter(id => results[at][id] !== true)
    if (only.length === 0) continue
    const second = await inThread({ ...run, only })
    const passed = only.filter(id => second[id] === true)
    if (passed.length > 0) console.log(`${run.name}: passed only when tried again: ${passed.join(', ')}`)
    Object.assign(results[at], second)
  }
}

function options () {
  const found = { program: join(ROOT, 'target/debug/groupcache-proxy'), only: undefined }
  const words = process.argv.slice(2)
  while (words.length > 0) {
    const [word, value] = [words.shift(), words.shift()]
    if (word === '--program' && value) found.program = resolve(value)
    else if (word === '--only' && value) found.only = value.split(',')
    else throw new Error(`unknown argument ${word}`)
  }
  if (!existsSync(found.program)) throw new Error(`${found.program} does not exist: cargo build`)
  return found
}

/// Takes the suite from the registry, unless it is here already.
function install () {
  const wanted = [SUITE, CLIENT]
  const present = wanted.every(text => {
    const [name, version] = text.split('@')
    const manifest = join(MODULES, name, 'package.json')
    return existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).version === version
  })
  if (present) return
  const prefix = join(WORK, 'suite')
  mkdirSync(prefix, { recursive: true })
  writeFileSync(join(prefix, 'package.json'), '{ "private": true }\n')
  const flags = ['--no-save', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error', '--prefix', prefix]
  const done = spawnSync('npm', ['install', ...flags, ...wanted], { stdio: ['ignore', 'inherit', 'inherit'], timeout: 120_000 })
  if (done.status !== 0) throw new Error(`npm could not install ${wanted.join(' and ')}`)
}

/// The suite's own origin, on a free port.
async function startOrigin () {
  const handlers = {}
  for (const name of ['config', 'test', 'state']) {
    handlers[name] = (await suite(`http-cache-tests/server/handle-${name}.mjs`)).default
  }
  const server = createHttpServer((request, response) => {
    const [, handler, ...rest] = new URL(request.url, 'http://origin').pathname.split('/')
    if (handlers[handler]) return handlers[handler](rest, request, response)
    response.statusCode = 404
    response.end('not found')
  })
  const port = await listen(server)
  server.unref()
  return `http://127.0.0.1:${port}`
}

function listen (server) {
  return new Promise((done, failed) => {
    server.on('error', failed)
    server.listen(0, '127.0.0.1', () => done(server.address().port))
  })
}

/// Ports that are free now and bound by the nodes a moment later.
async function freePorts (count) {
  const servers = Array.from({ length: count }, () => createServer())
  const ports = await Promise.all(servers.map(listen))
  await Promise.all(servers.map(server => new Promise(done => server.close(done))))
  return ports
}

/// Starts nodes with the shipped configuration; only addresses, origin and fleet are put in.
async function startNodes (nodes, program, origin, name, count) {
  const shipped = readFileSync(join(ROOT, 'conf/rfc9111.yaml'), 'utf8')
  const urls = (await freePorts(count)).map(port => `http://127.0.0.1:${port}`)
  for (const [at, url] of urls.entries()) {
    let text = replaceOnce(shipped, 'address: 127.0.0.1:8080', `address: ${url.slice('http://'.length)}`)
    text = replaceOnce(text, 'origin: http://127.0.0.1:9000', `origin: ${origin}`)
    text += 'memory: 64MiB\nthreads: 1\nlog: { level: error, access: none }\nshutdown: { delay: 0s, timeout: 5s }\n'
    if (count > 1) text += `fleet: { self: '${url}', peers: ${JSON.stringify(urls)} }\n`
    const path = join(WORK, `${name}-${at + 1}.yaml`)
    writeFileSync(path, text)
    nodes.push(new Node(program, path, url))
  }
  for (const node of nodes.slice(-count)) await node.ready()
  return urls
}

function replaceOnce (text, from, to) {
  if (text.split(from).length !== 2) throw new Error(`conf/rfc9111.yaml should say "${from}" once`)
  return text.replace(from, to)
}

/// A process that ends when its standard input ends, hence with this one.
class Node {
  constructor (program, path, url) {
    this.url = url
    const stdio = ['pipe', 'ignore', 'inherit']
    this.child = spawn(program, ['run', '--until-input-ends', '--config', path], { stdio })
    this.child.on('error', error => { this.failed = error })
    this.ended = new Promise(done => this.child.on('exit', done))
  }

  check () {
    if (this.failed) throw this.failed
    if (this.child.exitCode !== null || this.child.signalCode !== null) throw new Error(`the node at ${this.url} ended`)
  }

  async ready () {
    const deadline = Date.now() + READY_MILLISECONDS
    while (Date.now() < deadline) {
      this.check()
      const reply = await fetch(`${this.url}/_groupcache/ready`).catch(() => undefined)
      if (reply?.status === 200) return
      await pause(50)
    }
    throw new Error(`the node at ${this.url} does not become ready`)
  }

  async stop () {
    this.child.stdin.end()
    const killed = setTimeout(() => this.child.kill('SIGKILL'), STOP_MILLISECONDS)
    if (!this.failed) await this.ended
    clearTimeout(killed)
  }
}

/// Lets so many through at once; the rest wait in line.
class Gate {
  constructor (places) {
    Object.assign(this, { places, line: [] })
  }

  async pass (action) {
    if (this.places > 0) this.places -= 1
    else await new Promise(done => this.line.push(done))
    try {
      return await action()
    } finally {
      const next = this.line.shift()
      if (next) next()
      else this.places += 1
    }
  }
}

function inThread (data) {
  return new Promise((done, failed) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: data })
    const late = setTimeout(() => failed(new Error(`the run "${data.name}" takes too long`)), RUN_MILLISECONDS)
    worker.on('message', done)
    worker.on('error', failed)
    worker.on('exit', () => {
      clearTimeout(late)
      failed(new Error(`the run "${data.name}" ended early`))
    })
  })
}

/// One run of the suite, in a thread.
async function runSuite ({ urls, shift, only, dump }) {
  const { runTests, getResults } = await suite('http-cache-tests/client/runner.mjs')
  const { default: ask } = await suite('node-fetch/lib/index.mjs')
  const chosen = (await suitesOf(suite)).map(one => ({
    ...one,
    tests: one.tests.filter(test => !only || only.includes(test.id)).map(test => ({ ...test, dump }))
  }))
  const count = chosen.reduce((sum, one) => sum + one.tests.length, 0)
  if (count === 0) throw new Error(`no test is called ${only}`)
  const gate = new Gate(REQUESTS_AT_ONCE)
  const turns = new Turns(urls, shift, url => gate.pass(() => ask(url, { timeout: REQUEST_MILLISECONDS })))
  const inTurn = async (url, init = {}) => {
    const path = url.slice(BASE.length)
    const node = await turns.node(path, init.headers)
    return gate.pass(() => ask(node + path, { ...init, timeout: REQUEST_MILLISECONDS }))
  }
  await runTests(chosen, inTurn, false, BASE, TESTS_AT_ONCE)
  return getResults()
}

/// Stands for the nodes in the URLs that the suite makes.
const BASE = 'http://nodes'

/// Whose turn it is: with `shift` 0 the first request of a test goes to the owner of its key, the next to the next node;
/// with 1 and 2 the second or third request does.
class Turns {
  constructor (urls, shift, ask) {
    Object.assign(this, { urls, shift, ask, owners: new Map() })
  }

  async node (path, fields = []) {
    if (this.urls.length === 1) return this.urls[0]
    const number = Number(fields.find(([name]) => name === 'Req-Num')?.[1] ?? 1)
    const at = (await this.owner(path)) + number - 1 - this.shift + this.urls.length
    return this.urls[at % this.urls.length]
  }

  owner (path) {
    if (!this.owners.has(path)) this.owners.set(path, this.askForOwner(path))
    return this.owners.get(path)
  }

  async askForOwner (path) {
    const reply = await this.ask(`${this.urls[0]}/_groupcache/explain?path=${encodeURIComponent(path)}`)
    const { owner } = await reply.json()
    const at = this.urls.indexOf(owner)
    if (at < 0) throw new Error(`nobody knows the owner of ${path}: ${owner}`)
    return at
  }
}

if (isMainThread) {
  const nodes = []
  let code = 2
  try {
    code = await main(nodes)
  } catch (error) {
    console.error(`conformance: ${error.message}`)
  }
  await Promise.all(nodes.map(node => node.stop()))
  process.exit(code)
} else {
  parentPort.postMessage(await runSuite(workerData))
}
