// What the results of the runs mean: the verdict, the table, and README.md.

import { kindOf } from './suite.mjs'

/// The exceptions of exceptions.toml: tables [[exception]] with the strings id, section and instead, and comments.
export function exceptionsOf (text) {
  const exceptions = new Map()
  let current
  for (const [at, line] of text.split('\n').entries()) {
    const mistake = what => new Error(`exceptions.toml:${at + 1}: ${what}`)
    if (/^\s*(#.*)?$/.test(line)) continue
    if (line.trim() === '[[exception]]') {
      current = {}
      continue
    }
    const [, key, value] = /^(id|section|instead) = "([^"\\]+)"$/.exec(line) ?? []
    if (!key || !current) throw mistake('expected [[exception]], or id, section or instead = "text"')
    current[key] = value
    if (key !== 'instead') continue
    if (!current.id || !current.section) throw mistake('id and section come before instead')
    if (exceptions.has(current.id)) throw mistake(`${current.id} again`)
    exceptions.set(current.id, current)
  }
  return exceptions
}

/// Compares the runs; the first is that of the single node, all others are the fleet's.
export function judge (suites, runs, exceptions) {
  const tests = suites.flatMap(suite => suite.tests.map(test => ({ suite: suite.name, id: test.id, kind: kindOf(test), test })))
  const byId = new Map(tests.map(test => [test.id, test]))
  for (const id of exceptions.keys()) {
    if (!byId.has(id)) throw new Error(`exceptions.toml: the suite has no test ${id}`)
  }
  for (const test of tests) {
    test.reasons = runs.map(run => reasonOf(test.id, run.results, byId))
    test.node = test.reasons[0] === undefined
    test.fleet = test.reasons.slice(1).every(reason => reason === undefined)
    test.differs = test.reasons.some(reason => (reason === undefined) !== test.node)
    test.exception = exceptions.get(test.id)
    test.wrong = wrongWith(test)
  }
  const wrong = tests.filter(test => test.wrong)
  const verdict = { suites: suites.map(suite => suite.name), tests, runs: runs.map(run => run.name), failures: wrong.length }
  verdict.text = text(verdict, wrong)
  return verdict
}

/// Why a test did not pass, or nothing. A test counts only if those that it depends on have passed.
function reasonOf (id, results, byId) {
  for (const needed of byId.get(id).test.depends_on ?? []) {
    if (reasonOf(needed, results, byId) !== undefined) return `needs ${needed}`
  }
  const result = results[id]
  if (result === true) return undefined
  if (!Array.isArray(result)) return 'was not run'
  const [name, message] = result
  const reason = name === 'Assertion' ? message : `${name}: ${message}`
  return reason
    .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, '(id)')
    .replace(/\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT/g, '(date)')
    .replace(/127\.0\.0\.1:\d+/g, '(node)')
}

/// What has to be repaired, or nothing.
function wrongWith (test) {
  if (test.differs) return 'node and fleet differ'
  if (test.kind === 'check') return test.exception && 'an exception, though it only asks'
  if (test.exception) return test.node && 'an exception, though it passes: strike it out'
  return test.node ? undefined : 'does not pass'
}

const rate = (tests, side, kind) => {
  const counted = tests.filter(test => test.kind === kind)
  return counted.length === 0 ? '' : `${counted.filter(test => test[side]).length}/${counted.length}`
}

function rows (verdict) {
  const row = (name, tests) => [
    name,
    ...['required', 'optimal', 'check'].flatMap(kind => [rate(tests, 'node', kind), rate(tests, 'fleet', kind)])
  ]
  return [
    ...verdict.suites.map(name => row(name, verdict.tests.filter(test => test.suite === name))),
    row('All', verdict.tests)
  ]
}

const HEADINGS = ['category', 'required', 'fleet', 'optimal', 'fleet', 'checks: yes', 'fleet']

function text (verdict, wrong) {
  const table = [HEADINGS, ...rows(verdict)]
  const widths = HEADINGS.map((_, column) => Math.max(...table.map(row => row[column].length)))
  const lines = table.map(row => row.map((cell, column) => cell.padEnd(widths[column])).join('  ').trimEnd())
  const section = (heading, tests, show) => {
    if (tests.length > 0) lines.push('', `${heading}:`, ...tests.flatMap(show))
  }
  const reasons = test => test.reasons.flatMap((reason, at) =>
    reason === undefined ? [] : test.reasons.indexOf(reason) === at ? [`      ${verdict.runs[at]}: ${reason}`] : [])
  section('Exceptions', verdict.tests.filter(test => test.exception && !test.wrong), test => [`  ${test.id} (${test.exception.section})`])
  section('To be repaired', wrong, test => [`  ${test.id} (${test.kind}): ${test.wrong}`, ...reasons(test)])
  return lines.join('\n')
}

/// The text of README.md: the same for the same results, wherever and whenever they were had.
export function report (suite, suites, verdict) {
  const line = cells => `| ${cells.join(' | ')} |`
  const table = [line(HEADINGS), line(HEADINGS.map((_, column) => column === 0 ? '---' : '---:')), ...rows(verdict).map(line)]
  const exceptions = verdict.tests.filter(test => test.exception)
  const open = verdict.tests.filter(test => test.wrong)
  const checks = yes => verdict.tests.filter(test => test.kind === 'check' && test.node === yes).map(test => `\`${test.id}\``)
  const parts = [
    '# Conformance',
    `Written by \`make conformance\`, which runs [${suite}](https://www.npmjs.com/package/http-cache-tests) on \`conf/rfc9111.yaml\`:
once against one node, and against a fleet of three whose nodes are asked in turn, three times, so that each request of a
test meets the owner of its key once. A test passes on the fleet when it passes all three times. Here each first number
counts what passed on one node, the one after it what passed on the fleet.`,
    table.join('\n'),
    '## Exceptions',
    'From `exceptions.toml`. The run fails when one of these passes, when another required or optimal test does not, or when node\nand fleet differ in any test.',
    [line(['test', 'section', 'what happens instead']), line(['---', '---', '---']),
      ...exceptions.map(test => line([`\`${test.id}\``, test.exception.section, test.exception.instead]))].join('\n'),
    '## Checks',
    'These are questions to which every answer is allowed.',
    `Yes: ${checks(true).join(', ')}.`,
    `No: ${checks(false).join(', ')}.`
  ]
  if (open.length > 0) {
    parts.push('## To be repaired', [line(['test', 'kind', 'what', 'reason']), line(['---', '---', '---', '---']),
      ...open.map(test => line([`\`${test.id}\``, test.kind, test.wrong, test.reasons.find(reason => reason) ?? '']))].join('\n'))
  }
  return parts.join('\n\n') + '\n'
}
