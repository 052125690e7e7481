import { expect, test } from 'vitest'

import type { Contribution, Round } from '../api/client'
import { spans, tally, totalMs } from './rounds'

const opened: Round = {
  round: 1,
  phase: 'training',
  opened_ms: 1000,
  deadline_ms: 9000,
  tokens: 0,
  contributions: [],
  opened_event: 1,
}

test('a round in progress lasts until now', () => {
  expect(spans(opened, 4000)).toEqual([{ name: 'training', ms: 3000 }])
  expect(spans({ ...opened, closed_ms: 5000 }, 5500)).toEqual([
    { name: 'training', ms: 4000 },
    { name: 'revealing', ms: 500 },
  ])
})

test('an ended round has its own length, whatever the clock says', () => {
  expect(totalMs({ ...opened, closed_ms: 5000, ended_ms: 7000 }, 0)).toBe(6000)
  expect(totalMs(opened, 0)).toBe(0)
})

test('a tally follows the life of a slot', () => {
  const states = ['lost', 'merged', 'refused', 'merged']
  expect(tally(states.map((state) => ({ state }) as Contribution))).toBe('2 merged, 1 refused, 1 lost')
})
