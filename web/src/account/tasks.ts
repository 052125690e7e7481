// What a BOINC machine's tasks are called for people.

import type { Host, Task } from '../api/client'

const STATES: Record<string, string> = {
  sent: 'on the machine',
  uploaded: 'sent back, being checked',
  granted: 'taken',
  accepted: 'accepted, merged soon',
  merged: 'merged into the model',
  refused: 'refused',
  failed: 'failed',
  aborted: 'stopped: it was no longer of use',
  lost: 'never came back',
}

/** What became of a task. */
export function happened(task: Task): string {
  const state = STATES[task.state] ?? task.state
  if (task.state !== 'sent' || task.progress_ppm === null || task.progress_ppm === undefined) return state
  return `${state}, ${Math.floor(task.progress_ppm / 10_000)} % done`
}

export function isBad(task: Task): boolean {
  return task.state === 'refused' || task.state === 'failed' || task.state === 'lost'
}

/** What a task of a run is for; ends before the round's number. */
export function purpose({ kind }: Task): string {
  if (kind === 'train') return 'round'
  return kind === 'again' ? 'checking round' : 'evaluating round'
}

/** What a machine is doing, in one line. */
export function doing(host: Host): string {
  const task = host.tasks.find(({ state }) => state === 'sent')
  if (!task) return 'Nothing to do right now; its client will ask again.'
  if (task.kind === 'enrol') return 'Measuring itself before its first round.'
  if (task.kind === 'again') return `Training another machine's round ${task.round ?? '–'} again, to check it.`
  return task.kind === 'train' ? `Training round ${task.round ?? '–'}.` : `Evaluating the model of round ${task.round ?? '–'}.`
}
