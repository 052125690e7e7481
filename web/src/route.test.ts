import { expect, test } from 'vitest'

import { logAddress, parseRoute, runAddress } from './route'

test('addresses read back as what they were made of', () => {
  expect(parseRoute('')).toEqual({ page: 'runs' })
  expect(parseRoute('#/')).toEqual({ page: 'runs' })
  expect(parseRoute(runAddress('a/b c'))).toEqual({ page: 'run', run: 'a/b c' })
  expect(parseRoute(logAddress('x', 12))).toEqual({ page: 'log', run: 'x', from: 12 })
  expect(parseRoute(logAddress('x'))).toEqual({ page: 'log', run: 'x', from: null })
  expect(parseRoute('#/join')).toEqual({ page: 'join' })
  expect(parseRoute('#/machines')).toEqual({ page: 'machines', link: null })
  expect(parseRoute('#/machines?link=abc')).toEqual({ page: 'machines', link: 'abc' })
  expect(parseRoute('#/chat?model=tiny')).toEqual({ page: 'chat', model: 'tiny' })
})

test('nonsense is unknown, never a crash', () => {
  expect(parseRoute('#/run')).toEqual({ page: 'unknown', address: '/run' })
  expect(parseRoute('#/run/%E0%A4%A')).toEqual({ page: 'run', run: '%E0%A4%A' })
  expect(parseRoute('#/run/x/log?from=-1')).toEqual({ page: 'log', run: 'x', from: null })
})
