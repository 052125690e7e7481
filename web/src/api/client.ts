// The hub's API: typed by the OpenAPI document, errors turned into sentences.

import createClient from 'openapi-fetch'

import type { components, paths } from './schema'

type Schemas = components['schemas']
export type Account = Schemas['AccountSummary']
export type BoincProject = Schemas['BoincProject']
export type Checkpoint = Schemas['CheckpointSummary']
export type Contribution = Schemas['Contribution']
export type DeviceKey = Schemas['DeviceKeySummary']
export type Host = Schemas['HostSummary']
export type HubInfo = Schemas['HubInfo']
export type LogEntry = Schemas['LogEntry']
export type LogPage = Schemas['LogPage']
export type LossPoint = Schemas['LossPoint']
export type MadeDeviceKey = Schemas['MadeDeviceKey']
export type NewAccount = Schemas['NewAccount']
export type Round = Schemas['RoundSummary']
export type Run = Schemas['RunSummary']
export type RunHead = Schemas['RunHead']
export type Task = Schemas['TaskSummary']
export type Team = Schemas['TeamSummary']
export type Worker = Schemas['WorkerSummary']

export const api = createClient<paths>({ baseUrl: location.origin })

/** Why a request brought nothing: a sentence for people, and the hub's code for programs. */
export class HubError extends Error {
  readonly code: string
  readonly status: number

  constructor(code: string, message: string, status: number) {
    super(message)
    this.code = code
    this.status = status
  }
}

interface Reply<T> {
  data?: T
  error?: unknown
  response: Response
}

/** Awaits a reply of `api` and returns its data, or throws a `HubError` that says what happened. */
export async function take<T>(reply: Promise<Reply<T>>): Promise<T> {
  let settled: Reply<T>
  try {
    settled = await reply
  } catch {
    throw new HubError('unreachable', 'The hub does not answer.', 0)
  }
  if (settled.data !== undefined) return settled.data
  throw refusal(settled)
}

/** Awaits a reply of `api` that has no data, or throws as `take` does. */
export async function done(reply: Promise<Reply<unknown>>): Promise<void> {
  let settled: Reply<unknown>
  try {
    settled = await reply
  } catch {
    throw new HubError('unreachable', 'The hub does not answer.', 0)
  }
  if (!settled.response.ok) throw refusal(settled)
}

function refusal({ error, response }: Reply<unknown>): HubError {
  const known = error as { code?: unknown; message?: unknown } | undefined
  return new HubError(
    typeof known?.code === 'string' ? known.code : 'unknown',
    typeof known?.message === 'string' ? known.message : `The hub answered with status ${response.status}.`,
    response.status,
  )
}

export function eventsAddress(run: string, after: number): string {
  return `/api/v1/runs/${encodeURIComponent(run)}/events?after=${after}`
}
