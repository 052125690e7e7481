// What a log entry means for the page: which projections it makes old, and what can be told at once.

import type { Contribution, LogEntry, LossPoint, Round, Run } from '../api/client'

export type Projection = 'run' | 'rounds' | 'workers' | 'losses' | 'checkpoints'

const AFFECTED: Record<string, Projection[]> = {
  run_created: ['run', 'checkpoints', 'losses'],
  worker_joined: ['run', 'workers'],
  worker_left: ['run', 'workers'],
  identity_bound: [],
  round_opened: ['run', 'rounds'],
  slot_added: ['rounds'],
  update_committed: ['rounds'],
  commitments_closed: ['run', 'rounds'],
  update_accepted: ['rounds'],
  update_refused: ['rounds', 'workers'],
  round_merged: ['run', 'rounds', 'workers', 'losses'],
  round_empty: ['run', 'rounds'],
  checkpoint_published: ['run', 'checkpoints'],
  model_evaluated: ['run', 'rounds', 'losses', 'checkpoints'],
  sample_drawn: ['checkpoints'],
  run_finished: ['run'],
  hub_replaced: ['run'],
}

/** Projections that an event of this kind changes; an unknown kind changes everything. */
export function affected(kind: string): Projection[] {
  return AFFECTED[kind] ?? ['run', 'rounds', 'workers', 'losses', 'checkpoints']
}

type Body = Record<string, unknown>

/** The run's head after an entry: what the entry itself says; the rest is fetched. */
export function foldRun(run: Run, entry: LogEntry): Run {
  if (entry.index < run.log_length) return run
  const body = entry.body as Body
  const next = { ...run, log_length: entry.index + 1 }
  switch (entry.kind) {
    case 'round_opened':
      next.phase = 'training'
      next.round = number(body.round) ?? run.round
      next.deadline_ms = number(body.deadline_ms)
      break
    case 'commitments_closed':
      next.phase = 'revealing'
      next.deadline_ms = null
      break
    case 'round_merged':
      next.phase = 'idle'
      next.rounds_merged = run.rounds_merged + 1
      break
    case 'round_empty':
      next.phase = 'idle'
      break
    case 'run_finished':
      next.phase = 'finished'
      next.deadline_ms = null
      break
  }
  return next
}

/** The loss curve after an entry: a merge appends a point, an evaluation completes it. */
export function foldLosses(points: LossPoint[], entry: LogEntry): LossPoint[] {
  const body = entry.body as Body
  const round = number(body.round)
  const last = points.at(-1)
  if (round === null) return points
  if (entry.kind === 'round_merged') {
    if (last && last.round >= round) return points
    const updates = Array.isArray(body.updates) ? (body.updates as Body[]) : []
    const tokens = updates.reduce((sum, update) => sum + (number(update.tokens) ?? 0), 0)
    return [
      ...points,
      {
        round,
        tokens: (last?.tokens ?? 0) + tokens,
        time_ms: entry.time_ms,
        training_loss: null,
        held_out_loss: null,
        bits_per_byte: null,
        event: entry.index,
      },
    ]
  }
  if (entry.kind === 'model_evaluated') {
    const evaluation = body.evaluation as Body | undefined
    const micronats = number(evaluation?.loss_micronats)
    const microbits = number(evaluation?.microbits_per_byte)
    if (micronats === null || microbits === null) return points
    return points.map((point) =>
      point.round === round
        ? { ...point, held_out_loss: micronats / 1e6, bits_per_byte: microbits / 1e6, event: entry.index }
        : point,
    )
  }
  return points
}

/** The rounds after an entry: an evaluation may come long after its round has left the newest, which alone are fetched. */
export function foldRounds(rounds: Round[], entry: LogEntry): Round[] {
  if (entry.kind !== 'model_evaluated') return rounds
  const body = entry.body as Body
  const micronats = number((body.evaluation as Body | undefined)?.loss_micronats)
  if (micronats === null || !rounds.some((round) => round.round === body.round)) return rounds
  return rounds.map((round) => (round.round === body.round ? { ...round, held_out_loss: micronats / 1e6 } : round))
}

/** Newest first, each round once, the fetched version wins. */
export function mergeRounds(known: Round[], fetched: Round[]): Round[] {
  const oldestFetched = fetched.at(-1)?.round
  const newestKnown = known[0]?.round
  // A hole between the two would read as rounds that never were.
  if (oldestFetched !== undefined && newestKnown !== undefined && oldestFetched > newestKnown + 1) return fetched
  const byRound = new Map(known.map((round) => [round.round, round]))
  for (const round of fetched) byRound.set(round.round, round)
  return [...byRound.values()].sort((a, b) => b.round - a.round)
}

/** Items in the order they already stand in, so that live changes move no row; newcomers go to the end. */
export function stableOrder<T extends { id: string }>(known: T[], fetched: T[], first: (a: T, b: T) => number): T[] {
  const rank = new Map(known.map((item, at) => [item.id, at]))
  return [...fetched].sort((a, b) => {
    const rankA = rank.get(a.id)
    const rankB = rank.get(b.id)
    if (rankA !== undefined && rankB !== undefined) return rankA - rankB
    if (rankA !== undefined) return -1
    if (rankB !== undefined) return 1
    return first(a, b)
  })
}

export interface Refusal {
  round: number
  contribution: Contribution
  reason: string
}

/** Refused updates of the rounds at hand, newest first. */
export function refusals(rounds: Round[]): Refusal[] {
  return rounds.flatMap((round) =>
    round.contributions.flatMap((contribution) =>
      contribution.refusal ? [{ round: round.round, contribution, reason: contribution.refusal }] : [],
    ),
  )
}

/** By worker, the event of its newest merged update in the rounds at hand. */
export function newestMerged(rounds: Round[]): Map<string, number> {
  const events = new Map<string, number>()
  for (const round of rounds) {
    for (const { worker, state, event } of round.contributions) {
      if (state === 'merged' && !events.has(worker)) events.set(worker, event)
    }
  }
  return events
}

function number(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? value : null
}
