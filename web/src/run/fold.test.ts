import { expect, test } from 'vitest'

import type { LogEntry, LossPoint, Round, Run } from '../api/client'
import { affected, foldLosses, foldRounds, foldRun, mergeRounds, newestMerged, refusals, stableOrder } from './fold'

function entry(index: number, kind: string, body: Record<string, unknown>): LogEntry {
  return { index, kind, body, hash: '', previous: '', signature: '', time_ms: 1000 * index } as LogEntry
}

function point(round: number, tokens: number, more: Partial<LossPoint> = {}): LossPoint {
  return { round, tokens, time_ms: 0, event: round, ...more }
}

function round(number: number, more: Partial<Round> = {}): Round {
  return {
    round: number,
    phase: 'merged',
    opened_ms: 0,
    deadline_ms: 0,
    tokens: 0,
    contributions: [],
    opened_event: 0,
    ...more,
  }
}

const run = { log_length: 10, round: 3, rounds_merged: 2, phase: 'revealing', deadline_ms: null } as unknown as Run

test('an opened round moves the head at once', () => {
  const next = foldRun(run, entry(10, 'round_opened', { round: 4, deadline_ms: 9000 }))
  expect(next).toMatchObject({ log_length: 11, round: 4, phase: 'training', deadline_ms: 9000 })
  expect(run.round).toBe(3)
})

test('an entry that the head already counts changes nothing', () => {
  expect(foldRun(run, entry(9, 'round_opened', { round: 9 }))).toBe(run)
})

test('a merge appends its tokens, an evaluation completes the point and moves its event', () => {
  const merged = foldLosses(
    [point(1, 100)],
    entry(20, 'round_merged', { round: 2, updates: [{ tokens: 30 }, { tokens: 12 }] }),
  )
  expect(merged[1]).toMatchObject({ round: 2, tokens: 142, held_out_loss: null, event: 20 })
  const evaluated = foldLosses(
    merged,
    entry(22, 'model_evaluated', { round: 2, evaluation: { loss_micronats: 3_250_000, microbits_per_byte: 1_750_000 } }),
  )
  expect(evaluated[1]).toMatchObject({ held_out_loss: 3.25, bits_per_byte: 1.75, event: 22 })
})

test('a merge seen twice appends once, and broken bodies are passed over', () => {
  const points = [point(2, 5)]
  expect(foldLosses(points, entry(20, 'round_merged', { round: 2, updates: [] }))).toBe(points)
  expect(foldLosses(points, entry(21, 'model_evaluated', { round: 2 }))).toBe(points)
  expect(foldLosses(points, entry(21, 'round_merged', {}))).toBe(points)
})

test('a late evaluation reaches its round', () => {
  const rounds = [round(30), round(2), round(1)]
  const next = foldRounds(rounds, entry(90, 'model_evaluated', { round: 2, evaluation: { loss_micronats: 4_000_000 } }))
  expect(next.map((each) => each.held_out_loss)).toEqual([undefined, 4, undefined])
  expect(foldRounds(rounds, entry(91, 'model_evaluated', { round: 9, evaluation: { loss_micronats: 1 } }))).toBe(rounds)
})

test('fetched rounds replace known ones, newest first', () => {
  const merged = mergeRounds([round(2, { phase: 'training' }), round(1)], [round(3), round(2)])
  expect(merged.map((each) => [each.round, each.phase])).toEqual([
    [3, 'merged'],
    [2, 'merged'],
    [1, 'merged'],
  ])
})

test('a hole between known and fetched rounds drops the known', () => {
  expect(mergeRounds([round(2), round(1)], [round(9), round(8)]).map((each) => each.round)).toEqual([9, 8])
})

test('known rows stay where they are and newcomers go to the end', () => {
  const known = [{ id: 'b' }, { id: 'a' }]
  const fetched = [{ id: 'd' }, { id: 'a' }, { id: 'c' }, { id: 'b' }]
  const ordered = stableOrder(known, fetched, (x, y) => x.id.localeCompare(y.id))
  expect(ordered.map((each) => each.id)).toEqual(['b', 'a', 'c', 'd'])
})

test('refusals carry their round and reason', () => {
  const refused = { slot: 1, worker: 'w', name: 'n', state: 'refused', refusal: 'too late', event: 7 }
  const merged = { slot: 0, worker: 'v', name: 'm', state: 'merged', event: 6 }
  expect(refusals([round(4, { contributions: [merged, refused] })])).toEqual([
    { round: 4, contribution: refused, reason: 'too late' },
  ])
})

test('what a worker has accepted leads to its newest merged update', () => {
  const part = (state: string, event: number) => ({ slot: 0, worker: 'w', name: 'n', state, event })
  const rounds = [
    round(3, { contributions: [part('refused', 30)] }),
    round(2, { contributions: [part('merged', 20)] }),
    round(1, { contributions: [part('merged', 10)] }),
  ]
  expect(newestMerged(rounds).get('w')).toBe(20)
})

test('an unknown event makes everything old', () => {
  expect(affected('something_new')).toContain('workers')
  expect(affected('identity_bound')).toEqual([])
})
