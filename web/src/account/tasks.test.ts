import { expect, test } from 'vitest'

import type { Host, Task } from '../api/client'
import { doing, happened, isBad, purpose } from './tasks'

const task = (change: Partial<Task>): Task => ({
  name: 't_1_0',
  kind: 'train',
  run: 'r',
  round: 7,
  state: 'sent',
  sent_ms: 0,
  deadline_ms: 1,
  ...change,
})
const host = (tasks: Task[]) => ({ tasks }) as Host

test('a task on the machine says how far it is, if it said so', () => {
  expect(happened(task({}))).toBe('on the machine')
  expect(happened(task({ progress_ppm: 456_789 }))).toBe('on the machine, 45 % done')
  expect(happened(task({ state: 'merged', progress_ppm: 456_789 }))).toBe('merged into the model')
  expect(happened(task({ state: 'unheard of' }))).toBe('unheard of')
})

test('what went wrong is marked', () => {
  expect(['sent', 'merged', 'aborted', 'refused', 'failed', 'lost'].filter((state) => isBad(task({ state })))).toEqual(['refused', 'failed', 'lost'])
})

test('a machine does what its open task says', () => {
  expect(doing(host([]))).toMatch(/^Nothing/)
  expect(doing(host([task({ state: 'merged' }), task({})]))).toBe('Training round 7.')
  expect(doing(host([task({ kind: 'enrol', round: null })]))).toMatch(/^Measuring/)
  expect(doing(host([task({ kind: 'evaluate' })]))).toMatch(/^Evaluating the model of round 7/)
  expect(doing(host([task({ kind: 'again' })]))).toBe("Training another machine's round 7 again, to check it.")
})

test('a task says what it is for', () => {
  expect(['train', 'again', 'evaluate'].map((kind) => purpose(task({ kind })))).toEqual(['round', 'checking round', 'evaluating round'])
})
