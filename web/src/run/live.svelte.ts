// A run as the page shows it: fetched once, then kept up to date by one stream of log entries.

import {
  api,
  eventsAddress,
  HubError,
  take,
  type Checkpoint,
  type LogEntry,
  type LossPoint,
  type Round,
  type Run,
  type Worker,
} from '../api/client'
import { affected, foldLosses, foldRounds, foldRun, mergeRounds, stableOrder, type Projection } from './fold'

const REFRESH_MS = 500
/** Loss curves are the largest answer: merged points are folded at once and confirmed at this pace. */
const LOSSES_REFRESH_MS = 5_000
/** Presence and bytes change without an entry. */
const PRESENCE_MS = 15_000
const RETRY_MS_MAX = 15_000
const ROUNDS_PAGE = 50
const ROUNDS_NEWEST = 10
const CHECKPOINTS_MAX = 50

export type Connection = { state: 'connecting' } | { state: 'live' } | { state: 'behind'; since: number }

export class RunLive {
  run = $state.raw<Run | null>(null)
  rounds = $state.raw<Round[] | null>(null)
  workers = $state.raw<Worker[] | null>(null)
  losses = $state.raw<LossPoint[] | null>(null)
  checkpoints = $state.raw<Checkpoint[] | null>(null)
  problem = $state.raw<HubError | null>(null)
  connection = $state.raw<Connection>({ state: 'connecting' })
  moreRounds = $state(false)

  readonly #id: string
  #source: EventSource | null = null
  #dirty = new Set<Projection>()
  #timer: ReturnType<typeof setTimeout> | null = null
  #retry: ReturnType<typeof setTimeout> | null = null
  #presence: ReturnType<typeof setInterval> | null = null
  #retryMs = 1_000
  #lossesAt = 0
  #lastIndex = -1
  #stopped = false
  #rejoining = false
  #onEntry: (entry: LogEntry) => void = () => {}

  constructor(id: string, onEntry?: (entry: LogEntry) => void) {
    this.#id = id
    if (onEntry) this.#onEntry = onEntry
  }

  /** Begins; the caller must `stop`. `projections` are those that the page shows. */
  start(projections: Projection[]): void {
    this.#wanted = new Set(projections)
    void this.#open()
    if (projections.includes('workers')) {
      this.#presence = setInterval(() => this.#mark(['run', 'workers']), PRESENCE_MS)
    }
    document.addEventListener('visibilitychange', this.#visible)
  }

  stop(): void {
    this.#stopped = true
    this.#source?.close()
    for (const timer of [this.#timer, this.#retry]) if (timer !== null) clearTimeout(timer)
    if (this.#presence !== null) clearInterval(this.#presence)
    document.removeEventListener('visibilitychange', this.#visible)
  }

  async olderRounds(): Promise<void> {
    const before = this.rounds?.at(-1)?.round
    if (before === undefined) return
    const older = await take(
      api.GET('/api/v1/runs/{run}/rounds', { params: { path: { run: this.#id }, query: { before, limit: ROUNDS_PAGE } } }),
    )
    this.rounds = mergeRounds(this.rounds ?? [], older)
    this.moreRounds = older.length === ROUNDS_PAGE
  }

  #wanted = new Set<Projection>()
  #visible = () => {
    if (!document.hidden && this.#dirty.size > 0) this.#schedule()
  }

  async #open(): Promise<void> {
    try {
      const path = { run: this.#id }
      const run = await take(api.GET('/api/v1/runs/{run}', { params: { path } }))
      if (this.#stopped) return
      this.run = run
      this.problem = null
      this.#lastIndex = run.log_length - 1
      this.#connect()
      this.#mark([...this.#wanted].filter((name) => name !== 'run'))
      if (this.#timer !== null) clearTimeout(this.#timer)
      await this.#refresh()
    } catch (error) {
      if (this.#stopped) return
      this.problem = asHubError(error)
      if (this.problem.status !== 404) this.#later(() => void this.#open())
    }
  }

  #connect(): void {
    this.#source?.close()
    const source = new EventSource(eventsAddress(this.#id, this.#lastIndex))
    this.#source = source
    source.addEventListener('open', () => {
      this.#retryMs = 1_000
      if (this.connection.state === 'behind') {
        this.#rejoining = true
        this.#mark([...this.#wanted])
      }
      this.connection = { state: 'live' }
    })
    source.addEventListener('entry', (event) => this.#receive(event as MessageEvent<string>))
    source.addEventListener('error', () => {
      if (this.#stopped) return
      if (this.connection.state !== 'behind') this.connection = { state: 'behind', since: Date.now() }
      // The browser retries a broken stream itself; one that was refused it gives up.
      if (source.readyState === EventSource.CLOSED) this.#later(() => this.#connect())
    })
  }

  #later(then: () => void): void {
    if (this.#retry !== null) clearTimeout(this.#retry)
    this.#retry = setTimeout(then, this.#retryMs)
    this.#retryMs = Math.min(2 * this.#retryMs, RETRY_MS_MAX)
  }

  #receive(event: MessageEvent<string>): void {
    let entry: LogEntry
    try {
      entry = JSON.parse(event.data) as LogEntry
    } catch {
      this.#mark([...this.#wanted])
      return
    }
    if (entry.index <= this.#lastIndex) return
    this.#lastIndex = entry.index
    if (this.run) this.run = foldRun(this.run, entry)
    if (this.rounds) this.rounds = foldRounds(this.rounds, entry)
    if (this.losses) this.losses = foldLosses(this.losses, entry)
    this.#mark(affected(entry.kind))
    this.#onEntry(entry)
  }

  #mark(projections: Projection[]): void {
    for (const name of projections) if (this.#wanted.has(name)) this.#dirty.add(name)
    this.#schedule()
  }

  #schedule(): void {
    if (this.#timer !== null || this.#stopped || this.#dirty.size === 0 || document.hidden) return
    const onlyLosses = this.#dirty.size === 1 && this.#dirty.has('losses')
    const wait = onlyLosses ? Math.max(REFRESH_MS, this.#lossesAt + LOSSES_REFRESH_MS - Date.now()) : REFRESH_MS
    this.#timer = setTimeout(() => void this.#refresh(), wait)
  }

  async #refresh(): Promise<void> {
    const due = [...this.#dirty].filter(
      (name) => name !== 'losses' || this.losses === null || Date.now() >= this.#lossesAt + LOSSES_REFRESH_MS,
    )
    for (const name of due) this.#dirty.delete(name)
    const results = await Promise.allSettled(due.map((name) => this.#fetch(name)))
    results.forEach((result, at) => {
      if (result.status === 'rejected') this.#dirty.add(due[at]!)
    })
    const failed = results.find((result) => result.status === 'rejected')
    this.problem = failed ? asHubError(failed.reason) : null
    this.#timer = null
    this.#schedule()
  }

  async #fetch(name: Projection): Promise<void> {
    const path = { run: this.#id }
    switch (name) {
      case 'run': {
        const run = await take(api.GET('/api/v1/runs/{run}', { params: { path } }))
        if (this.#rejoining) {
          // A hub restored from a mirror may know less than it did: what it says now counts.
          this.#rejoining = false
          this.run = run
          if (run.log_length <= this.#lastIndex) {
            this.#lastIndex = run.log_length - 1
            this.rounds = null
            this.losses = null
            this.#mark([...this.#wanted])
          }
        } else if (!this.run || run.log_length >= this.run.log_length) {
          // An answer older than an entry seen since is left out; that entry has asked for a newer one.
          this.run = run
        }
        break
      }
      case 'rounds': {
        const limit = this.rounds === null ? ROUNDS_PAGE : ROUNDS_NEWEST
        const fetched = await take(api.GET('/api/v1/runs/{run}/rounds', { params: { path, query: { limit } } }))
        if (this.rounds === null) this.moreRounds = fetched.length === ROUNDS_PAGE
        const merged = mergeRounds(this.rounds ?? [], fetched)
        if (this.rounds !== null && merged.length === fetched.length) this.moreRounds = fetched.at(-1)!.round > 1
        this.rounds = merged
        break
      }
      case 'workers': {
        const fetched = await take(api.GET('/api/v1/runs/{run}/workers', { params: { path } }))
        this.workers = stableOrder(
          this.workers ?? [],
          fetched,
          (a, b) => Number(b.present) - Number(a.present) || b.credits_micro - a.credits_micro || a.joined_ms - b.joined_ms,
        )
        break
      }
      case 'losses': {
        const fetched = await take(api.GET('/api/v1/runs/{run}/losses', { params: { path } }))
        this.#lossesAt = Date.now()
        this.losses = fetched
        break
      }
      case 'checkpoints':
        this.checkpoints = await take(
          api.GET('/api/v1/runs/{run}/checkpoints', { params: { path, query: { limit: CHECKPOINTS_MAX } } }),
        )
        break
    }
  }
}

function asHubError(error: unknown): HubError {
  return error instanceof HubError ? error : new HubError('page', String(error), 0)
}
