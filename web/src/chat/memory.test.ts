import { expect, test } from 'vitest'

import { keep, recall, type Memory } from './memory'

const memory: Memory = {
  messages: [
    { id: 1, role: 'user', text: 'Once', state: 'done' },
    { id: 2, role: 'assistant', text: 'upon a', state: 'streaming', round: 4 },
  ],
  draft: 'and th',
  settings: { temperature: 0.5, max_tokens: 64 },
}

test('a reload keeps what came and marks it stopped', () => {
  const back = recall(keep(memory))
  expect(back.messages[1]).toMatchObject({ text: 'upon a', state: 'stopped', round: 4 })
  expect(back.draft).toBe('and th')
  expect(back.settings).toEqual(memory.settings)
})

test('broken or foreign content is left out', () => {
  expect(recall('{').messages).toEqual([])
  expect(recall('null').messages).toEqual([])
  const back = recall(JSON.stringify({ messages: [{ id: 1, role: 'system', text: 'x' }, 7], settings: { temperature: 99, max_tokens: 'all' } }))
  expect(back.messages).toEqual([])
  expect(back.settings).toEqual({ temperature: 2, max_tokens: 200 })
})

test('only the newest messages are stored', () => {
  const many = Array.from({ length: 300 }, (_, id) => ({ id, role: 'user' as const, text: '', state: 'done' as const }))
  expect(recall(keep({ ...memory, messages: many })).messages[0]!.id).toBe(100)
})
