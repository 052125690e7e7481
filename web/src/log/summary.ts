// One line for an event, and its body as coloured JSON.

import type { LogEntry } from '../api/client'
import { brief, bytes, plural } from '../format'

type Body = Record<string, unknown>

/** What an event says, in a few words. Never throws: a body of another shape only says less. */
export function summary(entry: LogEntry): string {
  const body = entry.body as Body
  const round = `round ${text(body.round)}`
  const worker = brief(text(body.worker))
  switch (entry.kind) {
    case 'run_created':
      return text(at(body, 'charter', 'name'))
    case 'worker_joined':
      return `${text(at(body, 'command', 'command', 'join', 'name'))} (${brief(text(at(body, 'command', 'worker')))})`
    case 'worker_left':
      return brief(text(at(body, 'command', 'worker')))
    case 'round_opened':
      return `${round}, ${plural(list(body.assignments).length, 'slot', 'slots')}`
    case 'slot_added':
      return `${round}, slot ${text(body.slot)} for ${worker}`
    case 'update_committed': {
      const commitment = at(body, 'command', 'command', 'commit')
      const size = at(commitment, 'update', 'bytes')
      return `round ${text(at(commitment, 'header', 'round'))}, ${brief(text(at(body, 'command', 'worker')))}${
        typeof size === 'number' ? `, ${bytes(size)}` : ''
      }`
    }
    case 'commitments_closed':
    case 'round_empty':
    case 'checkpoint_published':
    case 'run_finished':
      return round
    case 'hub_replaced':
      return `generation ${text(at(body, 'succession', 'generation'))}, at ${text(at(body, 'succession', 'address'))}`
    case 'update_accepted':
      return `${round}, ${worker}, weight ${text(body.weight)}`
    case 'update_refused':
      return `${round}, ${worker}, ${refusal(body.reason)}`
    case 'round_merged':
      return `${round}, ${plural(list(body.updates).length, 'update', 'updates')}`
    case 'model_evaluated': {
      const micronats = at(body, 'evaluation', 'loss_micronats')
      return typeof micronats === 'number' ? `${round}, held-out loss ${(micronats / 1e6).toFixed(3)}` : round
    }
    case 'sample_drawn':
      return `${round}, “${text(body.text).slice(0, 60)}…”`
    default:
      return ''
  }
}

/** A reason is a word, or a word with its detail. */
function refusal(reason: unknown): string {
  if (typeof reason !== 'object' || reason === null) return text(reason).replaceAll('_', ' ')
  return Object.entries(reason)
    .map(([code, detail]) => `${code.replaceAll('_', ' ')}: ${text(detail)}`)
    .join(', ')
}

function at(value: unknown, ...path: string[]): unknown {
  return path.reduce<unknown>(
    (inner, key) => (typeof inner === 'object' && inner !== null ? (inner as Body)[key] : undefined),
    value,
  )
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : []
}

function text(value: unknown): string {
  return typeof value === 'string' || typeof value === 'number' ? String(value) : ''
}

export interface Piece {
  kind: 'key' | 'string' | 'number' | 'word' | 'plain'
  text: string
}

const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|\b(true|false|null)\b/g

/** Pretty-printed JSON cut into coloured pieces; joined, they are the JSON again. */
export function highlight(value: unknown): Piece[] {
  const json = JSON.stringify(value, null, 2)
  const pieces: Piece[] = []
  let end = 0
  for (const match of json.matchAll(TOKEN)) {
    if (match.index > end) pieces.push({ kind: 'plain', text: json.slice(end, match.index) })
    const [whole, string, colon, number] = match
    if (string !== undefined && colon !== undefined) {
      pieces.push({ kind: 'key', text: string }, { kind: 'plain', text: colon })
    } else {
      pieces.push({ kind: string !== undefined ? 'string' : number !== undefined ? 'number' : 'word', text: whole })
    }
    end = match.index + whole.length
  }
  if (end < json.length) pieces.push({ kind: 'plain', text: json.slice(end) })
  return pieces
}

/** Where a page of the log starts so that the entry wanted stands in it with its neighbours. */
export function pageStart(wanted: number | null, length: number, page: number, before: number): number {
  const last = Math.max(0, length - page)
  if (wanted === null) return last
  return Math.max(0, Math.min(wanted - before, last))
}
