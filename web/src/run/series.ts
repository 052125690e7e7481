// Loss points as the chart draws them.

import type { LossPoint, Run } from '../api/client'

export type Axis = 'tokens' | 'rounds' | 'time'
export type Unit = 'nats' | 'bits'

export interface Baseline {
  name: string
  value: number
}

export interface Series {
  x: number[]
  training: (number | null)[]
  heldOut: (number | null)[]
  baselines: Baseline[]
}

/**
 * Bits per byte of one nat per token on the held-out text, from the newest point that has both.
 * The ratio belongs to that text (its tokens per byte), so it serves the baselines exactly and training loss nearly.
 */
export function bitsPerNat(points: LossPoint[]): number | null {
  for (let at = points.length - 1; at >= 0; at -= 1) {
    const { held_out_loss: nats, bits_per_byte: bits } = points[at]!
    if (nats && bits) return bits / nats
  }
  return null
}

/** The newest point whose losses are all there; the newest at all while none is. */
export function newestWhole(points: LossPoint[]): LossPoint | undefined {
  return points.findLast((point) => point.training_loss && point.held_out_loss) ?? points.at(-1)
}

export function buildSeries(points: LossPoint[], baselines: Run['baselines'] | null, axis: Axis, unit: Unit): Series {
  const scale = unit === 'nats' ? 1 : bitsPerNat(points)
  const scaled = (value: number | null | undefined) =>
    value === null || value === undefined || scale === null ? null : value * scale
  return {
    x: points.map((point) =>
      axis === 'tokens' ? point.tokens : axis === 'rounds' ? point.round : point.time_ms / 1000,
    ),
    training: points.map((point) => scaled(point.training_loss)),
    heldOut: points.map((point) => (unit === 'bits' ? (point.bits_per_byte ?? null) : scaled(point.held_out_loss))),
    baselines: (['unigram', 'bigram', 'trigram'] as const).flatMap((name) => {
      const value = scaled(baselines?.[name])
      return value !== null && value > 0 ? [{ name, value }] : []
    }),
  }
}

/**
 * Where labels of horizontal lines go so that none covers another, as baselines of text: above its line each,
 * the lowest below its line when the one above is near, all at least `gap` apart and in order.
 */
export function placeLabels(lines: number[], above: number, below: number, gap: number): number[] {
  const tops = lines.map((line) => line - above)
  const lowest = lines.indexOf(Math.max(...lines))
  const crowded = lines.some((line, at) => at !== lowest && lines[lowest]! - line < gap + above)
  if (crowded) tops[lowest] = lines[lowest]! + below
  const order = tops.map((top, at) => ({ top, at })).sort((a, b) => a.top - b.top)
  const result = [...tops]
  let floor = -Infinity
  for (const { top, at } of order) {
    const placed = Math.max(top, floor)
    result[at] = placed
    floor = placed + gap
  }
  return result
}

/** "0.21 below trigram": the lowest counting model that the loss has passed, else the highest that it has not. */
export function against(loss: number, baselines: Run['baselines']): string | null {
  const named = (['trigram', 'bigram', 'unigram'] as const)
    .map((name) => ({ name, value: baselines[name] }))
    .filter(({ value }) => value > 0)
    .sort((a, b) => a.value - b.value)
  const passed = named.find(({ value }) => loss < value)
  if (passed) return `${(passed.value - loss).toFixed(2)} below ${passed.name}`
  const next = named.at(-1)
  return next ? `${(loss - next.value).toFixed(2)} above ${next.name}` : null
}
