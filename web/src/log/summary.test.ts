import { expect, test } from 'vitest'

import type { LogEntry } from '../api/client'
import { highlight, pageStart, summary } from './summary'

function check(kind: string, body: unknown, expected: string): void {
  expect(summary({ kind, body } as LogEntry)).toBe(expected)
}

test('events in a few words', () => {
  check('round_opened', { round: 3, assignments: ['a', 'b'] }, 'round 3, 2 slots')
  check(
    'update_committed',
    { command: { worker: '0123456789abcdef', command: { commit: { update: { bytes: 2048 }, header: { round: 3 } } } } },
    'round 3, 0123456789, 2.00 KiB',
  )
  check(
    'update_refused',
    { round: 3, worker: 'w', reason: { norm: 'far too long' } },
    'round 3, w, norm: far too long',
  )
  check('update_refused', { round: 3, worker: 'w', reason: 'not_revealed' }, 'round 3, w, not revealed')
  check('model_evaluated', { round: 1, evaluation: { loss_micronats: 4_200_000 } }, 'round 1, held-out loss 4.200')
})

test('a body of another shape says less and breaks nothing', () => {
  check('update_committed', { command: 7 }, 'round , ')
  check('worker_joined', {}, ' ()')
  check('unheard_of', {}, '')
})

test('highlighting loses no character', () => {
  const value = { a: 'x: "1", {', b: [1, -2.5, true, null], 'c"': {} }
  const pieces = highlight(value)
  expect(pieces.map((piece) => piece.text).join('')).toBe(JSON.stringify(value, null, 2))
  expect(pieces.filter((piece) => piece.kind === 'key').map((piece) => piece.text)).toEqual(['"a"', '"b"', '"c\\""'])
  expect(pieces.filter((piece) => piece.kind === 'number').map((piece) => piece.text)).toEqual(['1', '-2.5'])
})

test('a page holds the wanted entry and what came before it', () => {
  expect(pageStart(50, 100, 20, 5)).toBe(45)
  expect(pageStart(2, 100, 20, 5)).toBe(0)
  expect(pageStart(99, 100, 20, 5)).toBe(80)
  expect(pageStart(null, 100, 20, 5)).toBe(80)
  expect(pageStart(7, 3, 20, 5)).toBe(0)
})
