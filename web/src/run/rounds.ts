// A round as the timeline draws it.

import type { Contribution, Round } from '../api/client'

export interface Span {
  name: 'training' | 'revealing'
  ms: number
}

/** How long a round trained and revealed; the part in progress counts up to `now`. */
export function spans(round: Round, now: number): Span[] {
  const closed = round.closed_ms ?? null
  const ended = round.ended_ms ?? null
  const training: Span = { name: 'training', ms: Math.max(0, (closed ?? ended ?? now) - round.opened_ms) }
  if (closed === null) return [training]
  return [training, { name: 'revealing', ms: Math.max(0, (ended ?? now) - closed) }]
}

export function totalMs(round: Round, now: number): number {
  return spans(round, now).reduce((sum, span) => sum + span.ms, 0)
}

/** One sign per state, so that colour is never the only difference. */
const SIGNS: Record<string, string> = {
  assigned: '·',
  committed: '◔',
  accepted: '◑',
  merged: '●',
  late: '→',
  deferred: '→',
  refused: '×',
  lost: '–',
}

export function sign(state: string): string {
  return SIGNS[state] ?? '?'
}

export const STATES = Object.keys(SIGNS)

/** "3 merged, 1 refused" in the order of a slot's life. */
export function tally(contributions: Contribution[]): string {
  const counts = new Map<string, number>()
  for (const { state } of contributions) counts.set(state, (counts.get(state) ?? 0) + 1)
  return [...counts.entries()]
    .sort(([a], [b]) => STATES.indexOf(a) - STATES.indexOf(b))
    .map(([state, amount]) => `${amount} ${state}`)
    .join(', ')
}
