// The tests of the suite that are meant for a shared cache.

/// All of them by category; `load` imports a file of the packages.
export async function suites (load) {
  const { default: tests } = await load('http-cache-tests/tests/index.mjs')
  const { default: surrogate } = await load('http-cache-tests/tests/surrogate-control.mjs')
  return [...tests, surrogate].map(one => ({ ...one, tests: one.tests.filter(test => test.browser_only !== true) }))
}

/// `required`, `optimal` or `check`; the last only asks what a cache does.
export function kindOf (test) {
  return test.kind ?? 'required'
}
