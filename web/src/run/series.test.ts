import { expect, test } from 'vitest'

import type { LossPoint } from '../api/client'
import { against, bitsPerNat, buildSeries, newestWhole, placeLabels } from './series'

const points: LossPoint[] = [
  { round: 0, tokens: 0, time_ms: 1000, event: 0, held_out_loss: 6, bits_per_byte: 3 },
  { round: 1, tokens: 500, time_ms: 2000, event: 4, training_loss: 5 },
  { round: 2, tokens: 900, time_ms: 3000, event: 9, training_loss: 4, held_out_loss: 4.4, bits_per_byte: 2.2 },
]
const baselines = { unigram: 5.5, bigram: 4.6, trigram: 4.2 }

test('nats over tokens', () => {
  const series = buildSeries(points, baselines, 'tokens', 'nats')
  expect(series.x).toEqual([0, 500, 900])
  expect(series.training).toEqual([null, 5, 4])
  expect(series.heldOut).toEqual([6, null, 4.4])
  expect(series.baselines.map((line) => line.value)).toEqual([5.5, 4.6, 4.2])
})

test('bits per byte over time scales everything but the measured', () => {
  const series = buildSeries(points, baselines, 'time', 'bits')
  expect(bitsPerNat(points)).toBe(0.5)
  expect(series.x).toEqual([1, 2, 3])
  expect(series.training).toEqual([null, 2.5, 2])
  expect(series.heldOut).toEqual([3, null, 2.2])
  expect(series.baselines[0]!.value).toBeCloseTo(2.75)
})

test('without an evaluation there are no bits and no lines', () => {
  const series = buildSeries([points[1]!], baselines, 'rounds', 'bits')
  expect(series.training).toEqual([null])
  expect(series.baselines).toEqual([])
})

test('labels stand above their lines, the lowest below when it is crowded', () => {
  expect(placeLabels([20, 60, 100], 4, 13, 12)).toEqual([16, 56, 96])
  expect(placeLabels([20, 90, 100], 4, 13, 12)).toEqual([16, 86, 113])
  expect(placeLabels([50, 52, 54], 4, 13, 12)).toEqual([46, 58, 70])
})

test('the point told is the newest that is whole', () => {
  expect(newestWhole([points[2]!, points[1]!])).toBe(points[2])
  expect(newestWhole([points[0]!, points[1]!])).toBe(points[1])
  expect(newestWhole([])).toBeUndefined()
})

test('a loss is told against the lowest counting model it has passed', () => {
  expect(against(4.0, baselines)).toBe('0.20 below trigram')
  expect(against(4.4, baselines)).toBe('0.20 below bigram')
  expect(against(6.0, baselines)).toBe('0.50 above unigram')
  expect(against(6.0, { unigram: 0, bigram: 0, trigram: 0 })).toBeNull()
})
