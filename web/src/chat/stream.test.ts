import { expect, test } from 'vitest'

import { EventDecoder, readPiece } from './stream'

test('events cut anywhere read the same', () => {
  const text = 'data: {"a":1}\r\n\r\n: keep alive\n\ndata: x\ndata: y\n\ndata: [DONE]\n\n'
  const expected = ['{"a":1}', 'x\ny', '[DONE]']
  for (let cut = 0; cut <= text.length; cut += 1) {
    const decoder = new EventDecoder()
    expect([...decoder.push(text.slice(0, cut)), ...decoder.push(text.slice(cut))]).toEqual(expected)
  }
})

test('pieces carry text and the reason of the end', () => {
  expect(readPiece('{"choices":[{"delta":{"content":"hi"}}]}')).toEqual({ text: 'hi', finish: null })
  expect(readPiece('{"choices":[{"delta":{},"finish_reason":"length"}]}')).toEqual({ text: '', finish: 'length' })
  expect(readPiece('{"choices":[]}')).toBeNull()
  expect(readPiece('[DONE]')).toBeNull()
  expect(() => readPiece('{"error":{"message":"no worker serves it"}}')).toThrow('no worker serves it')
})
